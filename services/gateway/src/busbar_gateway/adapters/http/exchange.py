"""One HTTP request and its answer, as the endpoints see them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import orjson
from busbar_messaging.topology import MAX_FRAME_PAYLOAD_BYTES

from busbar_gateway.adapters.http.cycle import Cycle
from busbar_gateway.adapters.http.errors import Family, Headers
from busbar_gateway.adapters.http.limits import ClientGone, HttpLimits, decompress
from busbar_gateway.adapters.http.rate_limits import rate_limit_headers
from busbar_gateway.adapters.identity import public_id
from busbar_gateway.domain.failures import PayloadTooLarge
from busbar_gateway.domain.limits import Standing
from busbar_gateway.domain.routes import Caller, Route
from busbar_gateway.usecases.calls import InferenceCall, Resumable

JSON: Headers = [(b"content-type", b"application/json")]

_NOBODY = Caller(tenant_id="", key_id="")


@dataclass(slots=True)
class Exchange:
    """A request with its identity, and the way to answer it."""

    cycle: Cycle
    family: Family
    limits: HttpLimits
    request_id: bytes
    """UUIDv7, 16 bytes."""
    caller: Caller = _NOBODY
    path_params: dict[str, str] = field(default_factory=dict[str, str])
    """What the address's placeholders matched."""
    received_unix_ns: int = field(default_factory=time.time_ns)
    received_monotonic: float = field(default_factory=time.monotonic)
    status: int = 0
    failed: bool = False
    """Whether an event stream ended in an error after it had begun."""
    called: bool = False
    """Whether it became an InferenceCall, whose trace says how it ended."""
    recorded: bool = False
    """Whether the answer goes to a recording, and is charged only as a whole."""
    watch: CancelledWhenGone | None = None
    standings: Callable[[str], Iterable[Standing]] | None = None
    """What a tenant has left of its limits."""

    @property
    def traceparent(self) -> str:
        """As the customer sent it; "" when there was none."""
        return (self.header(b"traceparent") or b"").decode("latin-1")

    @property
    def public_id(self) -> str:
        """The request id as customers see it."""
        return public_id(self.request_id)

    @property
    def started(self) -> bool:
        """Whether status and headers have left."""
        return self.cycle.started

    def header(self, name: bytes) -> bytes | None:
        """Return the first header of that lower-case name."""
        return self.cycle.headers.get(name)

    def text_header(self, name: bytes) -> str:
        """Return a header as lower-case text, "" when it is missing."""
        return (self.header(name) or b"").decode("latin-1").strip().lower()

    async def body(self) -> bytes:
        """Return the body, whole, decompressed and within the limits."""
        body = await self.cycle.body(self.limits)
        encoding = self.text_header(b"content-encoding")
        if not encoding:
            return body
        return decompress(body, encoding, self.limits.max_body_bytes)

    def start(self, status: int, headers: Headers) -> None:
        """Begin an answer; status and headers leave with its first part."""
        self.status = status
        self.cycle.start(status, [*headers, *self._identity()])

    async def write(self, part: bytes, *, more: bool) -> None:
        """Send a part of a started answer, the last one when not `more`."""
        await self.cycle.write(part, more=more)

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer."""
        length = (b"content-length", b"%d" % len(body))
        self.start(status, [*headers, length])
        await self.write(body, more=False)

    def _identity(self) -> Headers:
        identity: Headers = [(b"x-request-id", self.public_id.encode())]
        identity += self.rate_limits()
        if self.family == "openai":
            elapsed_ms = round((time.monotonic() - self.received_monotonic) * 1000)
            identity.append((b"openai-processing-ms", b"%d" % elapsed_ms))
        return identity

    def rate_limits(self) -> Headers:
        """What the caller has left of its limits, as it is now; nothing before it is known."""
        if self.standings is None or self.caller is _NOBODY:
            return []
        return rate_limit_headers(self.standings(self.caller.tenant_id))

    async def respond_json(self, document: object) -> None:
        """Send a document with status 200."""
        await self.respond(200, JSON, orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY))

    def call(
        self,
        route: Route,
        payload: bytes,
        api: str,
        timeout_s: float,
        *,
        whole: bool = False,
        output_tokens_max: int = 0,
        text_bytes: int = 0,
        resumable: Resumable | None = None,
    ) -> InferenceCall:
        """Return the call to serve; its deadline counts from when the request was received.

        Raises PayloadTooLarge for more than the model, or one message of the bus, takes.
        """
        most = route.manifest.max_payload_bytes or MAX_FRAME_PAYLOAD_BYTES
        if len(payload) > min(most, MAX_FRAME_PAYLOAD_BYTES):
            raise PayloadTooLarge(f"the model takes requests of at most {most} bytes")
        self.called = True
        return InferenceCall(
            request_id=self.request_id,
            caller=self.caller,
            route=route,
            payload=payload,
            api=api,
            received_unix_ns=self.received_unix_ns,
            deadline=self.received_monotonic + timeout_s,
            traceparent=self.traceparent,
            whole=whole or self.recorded,
            output_tokens_max=output_tokens_max,
            text_bytes=text_bytes,
            resumable=resumable,
        )

    def cancelled_when_gone(self) -> CancelledWhenGone:
        """Enter this once the body is read: the client's leaving then cancels what is inside."""
        self.watch = CancelledWhenGone(self.cycle)
        return self.watch

    @property
    def client_gone(self) -> bool:
        """Whether the client was seen to leave before the answer was complete."""
        return self.watch is not None and self.watch.gone


class CancelledWhenGone:
    """Cancels the task inside it when the client goes away, and then raises ClientGone.

    The connection itself tells: a second task that waits in `receive` would
    cost every request a twentieth of its price.
    """

    def __init__(self, cycle: Cycle) -> None:
        self._cycle = cycle
        self.gone = False

    async def __aenter__(self) -> Self:
        self._cycle.when_lost = self._cancel
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._cycle.when_lost = None
        if self.gone:
            inside = self._cycle.task
            assert inside is not None
            inside.uncancel()
            raise ClientGone from error

    def _cancel(self) -> None:
        inside = self._cycle.task
        if inside is not None:
            self.gone = True
            inside.cancel()


Endpoint = Callable[[Exchange], Awaitable[None]]
