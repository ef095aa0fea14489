"""Requests, and the attempts at answering them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from busbar_gateway.domain.admission import Ticket
from busbar_gateway.domain.attempts import Attempts
from busbar_gateway.domain.limits import Grant


class Outcome(StrEnum):
    """How a request ended, as its customer sees it."""

    SERVED = "served"
    LIMITED = "over its limit"
    FULL = "queue full"
    UNREADY = "no replica"
    EXPIRED = "deadline passed"
    GIVEN_UP = "given up"
    """Nodes failed at it as often as they may."""
    INTERRUPTED = "interrupted"
    """An answer that had begun was not finished."""

    @property
    def refused(self) -> bool:
        """Whether it was told at once to come later."""
        return self in {Outcome.LIMITED, Outcome.FULL, Outcome.UNREADY}


class Said(StrEnum):
    """What a node says about its work."""

    STARTED = "started"
    WORKING = "working"
    FINISHED = "finished"
    HANDED_BACK = "handed back"
    ENGINE_LOST = "engine lost"


class Inbox(Protocol):
    """Where a gateway hears from nodes."""

    def said(self, work: Work, node: str, what: Said) -> None:
        """A frame has arrived."""
        ...

    def silent(self, work: Work) -> None:
        """From now on nothing arrives of this work, whatever its node does."""
        ...


class Holder(Protocol):
    """A replica that has work in hand."""

    @property
    def reachable(self) -> bool:
        """Whether it hears what it is told."""
        ...

    def drop(self, work: Work) -> None:
        """Stop working on it."""
        ...


@dataclass(slots=True, eq=False, repr=False)
class Request:
    """One request from its arrival to its end."""

    number: int
    tenant: str
    deployment: str
    prompt_tokens: int
    answer_tokens: int
    streamed: bool
    gateway: Inbox
    deadline: float
    ticket: Ticket
    grant: Grant | None = None
    attempts: Attempts = field(default_factory=Attempts)
    region: str = ""
    """Where its current attempt was sent; empty while it is not out."""
    lost_in: str = ""
    """Where an attempt fell silent last; others are tried first."""
    delivered_tokens: int = 0
    """Of its answer, as far as the customer has it from attempts that were lost."""
    published: int = 0
    ended_attempt: int = 0
    """The last attempt that is known to be lost."""
    outcome: Outcome | None = None
    ended_at: float = 0.0


@dataclass(slots=True, eq=False, repr=False)
class Work:
    """One attempt at a request, as a message and then on a node."""

    request: Request
    attempt: int
    prompt_tokens: int
    answer_tokens: int
    copy: Holder | None = None
    first_token_at: float = 0.0
    ends_at: float = 0.0
    over: bool = False
    """Whether its node has done with it, well or not."""
    silent_since: float | None = None
    """Since when its gateway has heard nothing of it; None while it hears."""
    deliveries: int = 0

    def tokens_made(self, at: float) -> int:
        """How much of the answer a customer had by then."""
        if at < self.first_token_at:
            return 0
        whole_s = self.ends_at - self.first_token_at
        part = 1.0 if whole_s <= 0 else (at - self.first_token_at) / whole_s
        return min(self.answer_tokens, 1 + int(part * (self.answer_tokens - 1)))
