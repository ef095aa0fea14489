"""One request's attempts: which frame counts, when an attempt is lost, whether to try again.

An attempt's number is its fencing token: every publish takes the next one, and
frames of older numbers never count. `tries` bounds how often nodes may fail at
the same request without bringing it further, `resumptions` how often another
attempt may go on with its answer, `engine_losses` how often Triton may die of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

TRIES_MAX = 3
RESUMPTIONS_MAX = 10
UNHEARD_MAX = 8
"""A node that hangs swallows as many attempts as it had asked for, without looking at one."""
ENGINE_LOSSES_MAX = 2
"""The first may be another request's doing; at the second none of the first time was beside it."""
SILENCE_S = 3.0
"""A node that has spoken and then says nothing for this long has lost the attempt."""
UNSTARTED_SILENCE_S = 1.0
"""Nodes speak 100 ms after they took work: taken and silent for this long means lost."""
UNTAKEN_S = 1.5
"""Work that waits for this long in a region is sent to another one with a free slot. Longer than
`ack_wait`, so that another site of the region gets it first where one has swallowed it."""
_BACKOFFS_S = (0.05, 0.5, 1.0)


class Frame(Enum):
    """What to do with a frame."""

    COUNTS = auto()
    REPEATED = auto()
    """Seen before: drop it."""
    OBSOLETE = auto()
    """Of an older attempt or a second node: drop it and tell that node to stop."""
    GAP = auto()
    """A chunk before it was lost: the stream cannot go on."""


@dataclass(slots=True)
class Attempts:
    """The attempts of one request."""

    current: int = 0
    """Number of the newest attempt; 0 before the first."""
    tries: int = 0
    """Attempts that a node may have worked on since the answer last grew."""
    unheard: int = 0
    """Attempts that were taken by nodes which never said a word."""
    resumptions: int = 0
    """Attempts that went on with what the customer had already got."""
    engine_losses: int = 0
    """Attempts that Triton did not survive."""
    node: str = ""
    """Node that works on the current attempt, as far as known."""
    published: float = 0.0
    last_sign: float = 0.0
    """When the node last spoke; 0 when it has not."""
    next_chunk: int = 0
    delivering: bool = False
    """True once the customer may have seen a chunk: then another attempt can only go on."""

    def begin(self, now: float) -> int:
        """Start the next attempt and return its number."""
        self.current += 1
        self.node = ""
        self.published = now
        self.last_sign = 0.0
        self.next_chunk = 0
        return self.current

    def frame(self, attempt: int, node: str, now: float, sequence: int | None = None) -> Frame:
        """Judge a frame; `sequence` is that of a chunk and None for other frames."""
        if attempt != self.current:
            return Frame.OBSOLETE
        if node != self.node:
            if self.next_chunk:
                return Frame.OBSOLETE
            self.node = node
        self.last_sign = now
        if sequence is None:
            return Frame.COUNTS
        if sequence < self.next_chunk:
            return Frame.REPEATED
        if sequence > self.next_chunk:
            return Frame.GAP
        self.next_chunk += 1
        return Frame.COUNTS

    def lost(self, now: float, *, taken: bool) -> bool:
        """Whether the current attempt must be given up; `taken`: no longer in the stream."""
        if self.last_sign:
            return now - self.last_sign > SILENCE_S
        return taken and now - self.published > UNSTARTED_SILENCE_S

    def handed_out(self) -> None:
        """The customer gets a chunk: whatever failed before, it brought the answer further."""
        self.delivering = True
        self.tries = 1

    def may_retry(self, *, resumable: bool) -> bool:
        """Whether another attempt is allowed after the current one failed at a node."""
        if self.delivering and not (resumable and self.resumptions < RESUMPTIONS_MAX):
            return False
        return self.tries < TRIES_MAX and self.unheard < UNHEARD_MAX

    def tried(self, *, unheard: bool) -> None:
        """The current attempt failed at a node, and another one follows."""
        if unheard:
            self.unheard += 1
        else:
            self.tries += 1
        self.resumptions += self.delivering

    def blamed(self) -> bool:
        """Whether the request has cost as many Tritons as it may."""
        return self.engine_losses >= ENGINE_LOSSES_MAX

    def backoff_s(self) -> float:
        """How long to wait before the next attempt."""
        return _BACKOFFS_S[min(self.tries, len(_BACKOFFS_S)) - 1]
