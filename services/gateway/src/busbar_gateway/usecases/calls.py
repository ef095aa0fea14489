"""What an edge hands to `usecases.serving.Serving` and what it gets back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from busbar_gateway.domain.routes import Caller, Route


class Resumable(Protocol):
    """An answer that another attempt can go on with; the edge keeps it up to date."""

    @property
    def input_tokens(self) -> int:
        """As `count` last said."""
        ...

    @property
    def output_tokens(self) -> int:
        """As `count` last said."""
        ...

    @property
    def complete(self) -> bool:
        """Whether everything was handed out, although the attempt has not ended."""
        ...

    @property
    def falls_short(self) -> bool:
        """Whether the attempt ended well and yet something is left to be made."""
        ...

    @property
    def cached_tokens(self) -> int:
        """Those of `input_tokens` that were in a cache, as `count` last said."""
        ...

    def count(
        self, input_tokens: int, output_tokens: int, cached_tokens: int = 0
    ) -> tuple[int, int]:
        """The whole answer's tokens, from what the present attempt has counted."""
        ...

    def go_on(self) -> bytes:
        """Serialized inference.ModelInferRequest for what is left after what was handed out."""
        ...


@dataclass(slots=True)
class InferenceCall:
    """One authenticated, validated request."""

    request_id: bytes
    """UUIDv7, 16 bytes."""
    caller: Caller
    route: Route
    payload: bytes
    """Serialized inference.ModelInferRequest."""
    api: str
    """As in UsageRecord.api."""
    received_unix_ns: int
    """When the edge had the request; the root span starts here."""
    deadline: float
    """On the event loop's clock, which is time.monotonic; it may be noticed a tick late."""
    output_tokens_max: int = 0
    """The most tokens that the customer lets the model make; 0 when it did not say."""
    traceparent: str = ""
    """As the customer sent it; empty when there was none."""
    whole: bool = False
    """For `stream`: the customer gets nothing before the answer is complete, so leaving
    without `settle` charges nothing, and an exception after it takes the charge back."""
    request_bytes: int = 0
    """Size of what the customer sent where `payload` is not that; 0 where it is."""
    text_bytes: int = 0
    """Size of the text in it that the model reads; 0 where nothing tells it."""
    as_asked: Callable[[bytes], bytes] | None = None
    """Makes a response what the customer asked for, where `payload` asks for more."""
    read: Callable[[bytes], object] | None = None
    """Reads a unary answer. Raises ModelFailed for one that cannot be read, before it is charged:
    another attempt may help."""
    may_charge: Callable[[], Awaitable[None]] | None = None
    """Awaited before a unary answer is charged, where it cannot leave at once."""
    canary: str = ""
    """Digest of the version on trial that has it; empty where the one that serves does."""
    resumable: Resumable | None = None
    """None where a begun answer cannot be gone on with by another attempt."""


@dataclass(frozen=True, slots=True)
class RefusedCall:
    """An authenticated request that was refused before it became an InferenceCall."""

    request_id: bytes
    """UUIDv7, 16 bytes."""
    caller: Caller
    api: str
    """As in UsageRecord.api, as far as that was known."""
    received_unix_ns: int
    http_status: int
    """What the refusal is over HTTP, also where it was not HTTP."""
    traceparent: str = ""
    attributes: Mapping[str, str | int] = field(default_factory=dict[str, str | int])
    """What else its span says."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A unary answer, charged and durable."""

    payload: bytes
    """Serialized inference.ModelInferResponse."""
    input_tokens: int
    output_tokens: int
    handing_over: Callable[[], None]
    """As in AnswerStream."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One response of a decoupled model. Tokens and compute are cumulative."""

    payload: bytes
    """Serialized inference.ModelInferResponse."""
    input_tokens: int
    output_tokens: int
    compute_us: int = 0
    cached_tokens: int = 0


class AnswerStream(Protocol):
    """The responses of one streamed request."""

    def __aiter__(self) -> AsyncIterator[Chunk]:
        """Iterate over the chunks; a chunk counts as delivered when the next one is asked for.

        Raises a failure of `domain.failures` when the answer cannot be completed.
        """
        ...

    def handed_over(self) -> None:
        """Count the last chunk as delivered now, for an edge that cannot tell when it was read."""
        ...

    def holds_back(self) -> None:
        """Say that the last chunk is part of the last bytes: it is not delivered before those.

        Who leaves before that pays nothing for it, and for the chunks before it as ever.
        If another one comes all the same, it is to be handed over before that.
        """
        ...

    def handing_over(self) -> None:
        """Call it right before the last byte goes to the transport.

        A gateway that is killed from here on leaves the charge as it is, one
        that is killed before takes it back. An exception still takes it back.
        """
        ...

    async def settle(self) -> None:
        """Commit the charge for everything yielded; call it before writing the last bytes.

        Raises Unavailable or DeadlineExceeded when the charge cannot be made
        durable; then nothing is charged and the stream must end in an error.
        """
        ...


class ServesRequests(Protocol):
    """What the edges need from `Serving`."""

    def infer(self, call: InferenceCall) -> AbstractAsyncContextManager[Answer]:
        """Answer with one response, for models that are not decoupled.

        On entry the charge is durable. Leaving cleanly means that the answer
        was handed to the customer (an edge says before when it does that); an
        exception inside (also cancellation) takes the charge back. Entry raises a
        failure of `domain.failures`.
        """
        ...

    def stream(self, call: InferenceCall) -> AbstractAsyncContextManager[AnswerStream]:
        """Answer with many responses, for decoupled models.

        Leaving without `settle` by a failure of ours charges nothing; leaving
        in any other way means that the customer went away and charges what was
        delivered. Leaving always ends the work at the node.
        """
        ...

    def refused(self, call: RefusedCall, error: Exception) -> None:
        """Keep the trace of a request that is not going to be served, if it is to have one."""
        ...
