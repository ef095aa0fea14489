"""Usage that comes while a backlog is posted: posted beside it, not behind it."""

from __future__ import annotations

import asyncio
import time

import structlog
from busbar_errors import Unavailable
from busbar_messaging.dead_letters import stored_unix_ns, stream_sequence
from busbar_messaging.topology import BILLING_USAGE
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError

from busbar_billing.adapters import metrics
from busbar_billing.adapters.bus.consuming import Handler
from busbar_billing.adapters.bus.rereading import StreamReader

log = structlog.get_logger()

_MESSAGES_MAX = 1_000
_BYTES_MAX = 1024 * 1024
_GATHER_S = 0.2
_PAUSE_MAX_S = 10.0
_TIMEOUT_S = 5.0
_AWAY = (NatsError, JetStreamError, TimeoutError, OSError, Unavailable)


class FreshUsage:
    """Reads the end of USAGE while the durable consumer is far behind it.

    It acknowledges nothing and dead-letters nothing: the consumer comes to each of these
    messages, too, and finds of them in the inbox what was posted here. So whatever fails
    here only waits for the consumer.
    """

    def __init__(
        self,
        client: Client,
        far_behind: asyncio.Event,
        handle: Handler,
    ) -> None:
        """`handle` is what the consumer uses, too: doing it twice does no harm."""
        self._jetstream = client.jetstream(timeout=_TIMEOUT_S)
        self._reader = StreamReader(client, BILLING_USAGE.stream)
        self._far_behind = far_behind
        self._handle = handle

    async def run(self) -> None:
        """Wait for a backlog, post beside it until it is gone, for ever."""
        while True:
            await self._far_behind.wait()
            await self._beside_a_backlog()
            metrics.FRESH_LAG_SECONDS.set(0)

    async def _beside_a_backlog(self) -> None:
        after: int | None = None
        failed_in_a_row = 0
        while self._far_behind.is_set():
            try:
                if after is None:
                    after = await self._end_of_stream()
                    log.info("backlog: usage that comes now is posted beside it", behind=after)
                after, full = await self._step(after)
            except _AWAY as error:
                failed_in_a_row += 1
                log.warning("fresh usage waits", error=repr(error))
                await asyncio.sleep(min(_PAUSE_MAX_S, _GATHER_S * 2 ** min(failed_in_a_row, 10)))
            else:
                failed_in_a_row = 0
                await asyncio.sleep(0 if full else _GATHER_S)

    async def _end_of_stream(self) -> int:
        return (await self._jetstream.stream_info(BILLING_USAGE.stream)).state.last_seq

    async def _step(self, after: int) -> tuple[int, bool]:
        """Post the next messages behind `after`; the last one, and whether more are there."""
        messages = await self._reader.read(after, _MESSAGES_MAX, _BYTES_MAX)
        if not messages:
            return after, False
        try:
            await self._handle(messages)
        except Unavailable:
            raise
        except Exception:
            log.exception("fresh usage left to the backlog", messages=len(messages))
        else:
            age_s = time.time() - stored_unix_ns(messages[0]) / 1e9
            metrics.FRESH_LAG_SECONDS.set(max(0.0, age_s))
        size = sum(len(message.data) for message in messages)
        full = len(messages) == _MESSAGES_MAX or size > _BYTES_MAX // 2
        return stream_sequence(messages[-1]), full
