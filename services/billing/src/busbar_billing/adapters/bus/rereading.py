"""Messages of a stream by their numbers, beside whatever consumes it: reading changes nothing."""

from __future__ import annotations

import json

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

_TIMEOUT_S = 5.0
_END_OF_BATCH, _NONE = "204", "404"


class StreamReader:
    """Reads with one request for many messages: NATS ADR-31."""

    def __init__(self, client: Client, stream: str) -> None:
        self._client = client
        self._subject = f"$JS.API.DIRECT.GET.{stream}"

    async def read(self, after: int, count_max: int, bytes_max: int) -> list[Msg]:
        """The next messages behind number `after`, in order; fewer are no sign of the end, as a
        replica may lack the latest. Raises what nats-py raises when the bus is away."""
        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox)
        wanted = {"seq": after + 1, "batch": count_max, "max_bytes": bytes_max}
        found: list[Msg] = []
        try:
            await self._client.publish(self._subject, json.dumps(wanted).encode(), reply=inbox)
            while True:
                message = await subscription.next_msg(timeout=_TIMEOUT_S)
                headers = message.headers or {}
                status = headers.get("Status")
                if status in {_END_OF_BATCH, _NONE}:
                    return found
                if status is not None:
                    raise NatsError(f"{status} {headers.get('Description', '')}")
                found.append(message)
        finally:
            await subscription.unsubscribe()
