"""The hot path on the bus, on plain nats-py: work out, acknowledgements and frames in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import orjson
import structlog
from busbar_contracts.node.v1.work_pb2 import WorkFrame
from busbar_errors import Unavailable
from busbar_messaging import topology
from busbar_messaging.hot_connection import HotConnection
from google.protobuf.message import DecodeError
from nats.aio.client import Client
from nats.errors import Error as NatsError

from busbar_gateway.domain.failures import RateLimited

log = structlog.get_logger()

Acknowledged = Callable[[int | Exception], None]
OnFrame = Callable[[WorkFrame], None]

_SUBJECT_FULL = 10077
_NO_CANCEL = b""
"""A WorkCancel of nothing."""
_FORGET_ACKS_AFTER_S = 30.0
_INFO_TIMEOUT_S = 2.0


@dataclass(slots=True)
class _Waiting:
    published: float
    acknowledged: Acknowledged


class WorkBus:
    """One inbox for frames, one for acknowledgements, shared by all requests."""

    def __init__(self, client: Client, gateway_id: str) -> None:
        self._client = client
        self._hot = HotConnection(client)
        self.reply_subject = topology.reply_subject(gateway_id)
        self._ack_prefix = f"{client.new_inbox()}.".encode()
        self._acks: dict[bytes, _Waiting] = {}
        self._token = 0
        self._subjects: dict[tuple[str, str], bytes] = {}
        self._epochs: dict[str, str] = {}
        self._on_frame: OnFrame | None = None
        self.looks = 0
        """How often a stream was looked at."""

    @property
    def connected(self) -> bool:
        """Whether the server can be reached."""
        return self._client.is_connected

    @property
    def reconnects(self) -> int:
        """Changes whenever the connection was lost and found again."""
        return self._client.stats["reconnects"]

    async def start(self, on_frame: OnFrame) -> None:
        """Subscribe to both inboxes."""
        self._on_frame = on_frame
        await self._hot.subscribe(self.reply_subject, self._frame)
        await self._hot.subscribe(f"{self._ack_prefix.decode()}*", self._ack)

    def epoch(self, region: str) -> str:
        """Identifies the region's stream as last seen; empty when it was never seen."""
        return self._epochs.get(region, "")

    def publish_work(
        self, region: str, deployment: str, work: bytes, acknowledged: Acknowledged
    ) -> None:
        """Publish once; `acknowledged` gets the stream sequence, Unavailable or RateLimited."""
        now = monotonic()
        self._forget_old(now)
        self._token += 1
        token = b"%x" % self._token
        subject = self._subjects.get((region, deployment))
        if subject is None:
            subject = topology.work_subject(region, deployment).encode()
            self._subjects[region, deployment] = subject
        try:
            self._hot.publish(subject, work, self._ack_prefix + token)
        except NatsError as error:
            acknowledged(Unavailable(f"the bus did not take the request: {error}"))
        else:
            self._acks[token] = _Waiting(now, acknowledged)

    def publish_cancel(self, node: str, cancel: bytes) -> None:
        """Tell a node to stop; best effort."""
        try:
            self._hot.publish(topology.cancel_subject(node).encode(), cancel)
        except NatsError as error:
            log.warning("cancel not sent", node=node, error=str(error))

    def ask_for(self, node: str, absent: Callable[[], None]) -> None:
        """Call `absent` if the server knows nobody who listens for what the node is told.

        NATS answers that at once and in the node's place; a node itself answers nothing.
        """
        self._token += 1
        token = b"%x" % self._token

        def answered(_: int | Exception) -> None:
            absent()

        try:
            subject = topology.cancel_subject(node).encode()
            self._hot.publish(subject, _NO_CANCEL, self._ack_prefix + token)
        except NatsError:
            return
        self._acks[token] = _Waiting(monotonic(), answered)

    async def taken(self, region: str, sequences: frozenset[int]) -> frozenset[int] | None:
        """Which of these are no longer in the region's stream; None when it cannot be told."""
        info = await self._stream_info(region)
        if info is None:
            return None
        state = info["state"]
        first, last = state["first_seq"], state["last_seq"]
        deleted = frozenset[int](state.get("deleted") or [])
        return frozenset(s for s in sequences if s < first or s > last or s in deleted)

    async def _stream_info(self, region: str) -> dict[str, Any] | None:
        subject = f"$JS.API.STREAM.INFO.{topology.work_stream(region).name}"
        try:
            message = await self._client.request(
                subject, b'{"deleted_details":true}', timeout=_INFO_TIMEOUT_S
            )
        except (NatsError, TimeoutError, OSError) as error:
            log.warning("stream not seen", region=region, error=repr(error))
            return None
        info: dict[str, Any] = orjson.loads(message.data)
        if "error" in info:
            log.warning("stream not seen", region=region, error=info["error"])
            return None
        self._epochs[region] = info["created"]
        self.looks += 1
        return info

    def _frame(self, subject: bytes, data: bytes) -> None:
        try:
            frame = WorkFrame.FromString(data)
        except DecodeError:
            log.exception("not a work frame", subject=subject)
            return
        assert self._on_frame is not None
        self._on_frame(frame)

    def _ack(self, subject: bytes, data: bytes) -> None:
        waiting = self._acks.pop(subject[len(self._ack_prefix) :], None)
        if waiting is not None:
            waiting.acknowledged(_read_ack(data))

    def _forget_old(self, now: float) -> None:
        while self._acks:
            token, oldest = next(iter(self._acks.items()))
            if now - oldest.published < _FORGET_ACKS_AFTER_S:
                return
            del self._acks[token]


def _read_ack(data: bytes) -> int | Exception:
    if not data:
        return Unavailable("no stream takes work in this region")
    answer = orjson.loads(data)
    error = answer.get("error")
    if error is None:
        return int(answer["seq"])
    if error.get("err_code") == _SUBJECT_FULL:
        return RateLimited("too many requests are waiting for this model", 2.0)
    return Unavailable(f"the stream refused the request: {error.get('description')}")
