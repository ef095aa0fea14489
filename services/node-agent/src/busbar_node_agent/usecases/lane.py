"""One ready replica as the work sees it: its slots, its Triton, its counters."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from busbar_errors import BusbarError

from busbar_node_agent.domain.credits import Credits

CHECKED_FOR_S = 10.0
"""A model that has passed its check is not doubted again for so long: some input may well have it
answer what nobody can read, and who sends that again and again would have it checked all the time
instead of working for others."""

TokenCounter = Callable[[bytes], tuple[Sequence[int], Sequence[int], Sequence[int]]]
"""Reads prompt and generated token counts from a serialized inference.ModelInferResponse."""


class Infer(Protocol):
    """As Inference.infer, but several callers' requests may be one."""

    def __call__(
        self, request: bytes, timeout_s: float, traceparent: str, again: Callable[[], None] = ...
    ) -> Awaitable[bytes]:
        """`again` is called when the request has to be asked once more, alone."""
        ...


class TritonRefused(BusbarError):
    """A call of Triton ended with a status that is not OK; `code` is its gRPC name."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Inference(Protocol):
    """What serving needs of Triton. Both raise TritonRefused; cancelling either
    cancels the inference at Triton. A non-empty traceparent is passed on.
    """

    async def infer(self, request: bytes, timeout_s: float, traceparent: str) -> bytes:
        """Answer one serialized ModelInferRequest with one serialized ModelInferResponse."""
        ...

    def stream(
        self, request: bytes, timeout_s: float, traceparent: str
    ) -> AsyncGenerator[bytes, None]:
        """Every serialized ModelInferResponse to one serialized ModelInferRequest."""
        ...


@dataclass(slots=True, eq=False)
class Lane:
    """Work of one replica while it is loaded in one run of Triton."""

    deployment: str
    credits: Credits
    triton: Inference
    count_tokens: TokenCounter | None
    on_freed: Callable[[], None]
    infer_merged: Infer | None = None
    """None for a model that has to be asked for each request."""
    loaded: bool = True
    """False once this run of Triton, or the model in it, is gone."""
    suspect_since_s: float = 0.0
    """When the model first failed by its own fault since it last answered; 0 for never."""
    suspected: asyncio.Event = field(default_factory=asyncio.Event)
    answers_within_s: float | None = None
    """Longest that the model says nothing while it has work, as its bundle promises."""
    heard_s: float = 0.0
    """When it last said anything, or got work while it had none; by time.monotonic()."""
    doubted: bool = False
    """Whether an answer could not be read: then another one that came proves nothing."""
    passed_s: float = -math.inf
    """When it last passed a check while it worked."""
    ready_s: float = field(default_factory=time.monotonic)
    """When it had passed its warm-up."""
    _empty: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._empty.set()

    def occupied(self) -> None:
        """Work arrived for one of the slots asked for."""
        if not self.credits.in_hand:
            self.heard_s = time.monotonic()
        self.credits.arrived()
        self._empty.clear()

    def answered(self) -> None:
        """The model works, as far as can be told from here."""
        self.heard_s = time.monotonic()
        if not self.doubted:
            self.suspect_since_s = 0.0
            self.suspected.clear()

    def doubt(self) -> None:
        """What the model answers cannot be read: it takes nothing until it was checked."""
        if time.monotonic() - self.passed_s < CHECKED_FOR_S:
            return
        self.doubted = True
        self.failed()
        self.on_freed()  # so that whoever pulls for it takes back what it asked for

    def trust(self) -> None:
        """It was checked, and works."""
        self.passed_s, self.doubted = time.monotonic(), False
        self.answered()
        self.on_freed()

    def failed(self) -> None:
        """The model did not answer, or broke down answering: it may need a check."""
        self.suspect_since_s = self.suspect_since_s or time.monotonic()
        self.suspected.set()

    @property
    def silent(self) -> bool:
        """Whether it has said nothing for longer than it ever should."""
        if self.answers_within_s is None or not self.credits.in_hand:
            return False
        return time.monotonic() - self.heard_s > self.answers_within_s

    def unchecked_for(self, period_s: float | None) -> bool:
        """Whether it has answered for so long without a check; never without a period."""
        checked_s = max(self.passed_s, self.ready_s)
        if period_s is None or self.heard_s <= checked_s:
            return False
        return time.monotonic() - checked_s >= period_s

    def freed(self) -> None:
        """A slot is free again."""
        self.credits.ended()
        if self.credits.in_hand == 0:
            self._empty.set()
        self.on_freed()

    async def emptied(self) -> None:
        """Wait until nothing is in hand."""
        await self._empty.wait()
