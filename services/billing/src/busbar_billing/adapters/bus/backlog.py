"""How much usage waits to be posted, as the bus knows it."""

from __future__ import annotations

import asyncio
import time

from busbar_errors import Conflict, Unavailable
from busbar_messaging.topology import BILLING_USAGE
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError
from nats.js.errors import NotFoundError

_WITHIN_S = 10.0
_PAUSE_S = 0.1


class UsageStream:
    """The durable consumer of usage: what it has acknowledged is posted."""

    def __init__(self, client: Client) -> None:
        self._jetstream = client.jetstream(timeout=2)

    async def require_posted(self) -> None:
        """Return when all that was written until now is posted; raise Conflict after 10 s."""
        written, posted = await self._progress()
        goal, deadline = written, time.monotonic() + _WITHIN_S
        while posted < goal:
            if time.monotonic() > deadline:
                raise Conflict(
                    f"{goal - posted} batches of usage are not posted yet: try again in a minute"
                )
            await asyncio.sleep(_PAUSE_S)
            _, posted = await self._progress()

    async def _progress(self) -> tuple[int, int]:
        """The stream's last sequence, and the one up to which all is posted."""
        try:
            stream = await self._jetstream.stream_info(BILLING_USAGE.stream)
            found = await self._jetstream.consumer_info(BILLING_USAGE.stream, BILLING_USAGE.durable)
            written = stream.state.last_seq
            if found.num_pending or found.num_ack_pending:
                return written, found.ack_floor.stream_seq if found.ack_floor else 0
            # By the copy of the stream that the consumer's leader has, which may lag behind.
            posted = found.delivered.stream_seq if found.delivered else 0
            more = posted < written and await self._is_more(posted)
        except (NatsError, JetStreamError, TimeoutError, OSError) as error:
            raise Unavailable(f"the bus does not say what waits to be posted: {error!r}") from error
        return written, posted if more else written

    async def _is_more(self, posted: int) -> bool:
        """Whether the stream, by its leader, holds anything to be posted behind a message: what is
        there no longer is never delivered."""
        try:
            await self._jetstream.get_msg(
                BILLING_USAGE.stream, posted + 1, BILLING_USAGE.filter_subject, next=True
            )
        except NotFoundError:
            return False
        return True
