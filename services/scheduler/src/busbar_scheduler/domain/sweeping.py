"""What of the model store goes: what nothing uses, in two steps with time between them.

What is unused is condemned first: it stays readable, but whoever pushes it has to send it
again. Only what was still unused long after that is deleted, so that a push that counted on a
chunk before it was condemned has noted its bundle by then, which spares the chunk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

SWEPT_AT_ONCE_MAX = 500
"""Objects that one sweep writes at most."""


class Verdict(Enum):
    """What becomes of an object."""

    USED = "used"
    YOUNG = "young"
    """Unused, and so new that a push under way may be about to use it."""
    CONDEMN = "condemn"
    SPARE = "spare"
    """Condemned, and used after all."""
    WAIT = "wait"
    """Condemned not long ago."""
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Stored:
    """One object of the model store."""

    name: str
    size_bytes: int
    written_unix_ms: int
    """When it was stored, or condemned; by the store's clock."""
    revision: int
    content: str
    """What the store calls its content."""
    condemned: bool = False


@dataclass(frozen=True, slots=True)
class Inventory:
    """The whole model store at one moment of its own clock."""

    objects: tuple[Stored, ...]
    unclaimed: tuple[str, ...]
    """Contents that belong to no object: what a broken write left behind."""
    now_unix_ms: int


@dataclass(frozen=True, slots=True)
class Ages:
    """How old things have to be."""

    unused_ms: int
    """Before something unused is condemned; longer than a push takes."""
    condemned_ms: int
    """Before something condemned is deleted; longer than the last step of a push takes."""


@dataclass(slots=True)
class Sweep:
    """What becomes of each object; what is to be written is bounded."""

    used: list[Stored] = field(default_factory=list[Stored])
    young: list[Stored] = field(default_factory=list[Stored])
    condemn: list[Stored] = field(default_factory=list[Stored])
    spare: list[Stored] = field(default_factory=list[Stored])
    wait: list[Stored] = field(default_factory=list[Stored])
    delete: list[Stored] = field(default_factory=list[Stored])

    def of(self, verdict: Verdict) -> list[Stored]:
        """The objects of a verdict."""
        found: list[Stored] = getattr(self, verdict.value)
        return found


def judge(one: Stored, used: frozenset[str], now_unix_ms: int, ages: Ages) -> Verdict:
    """What becomes of one object."""
    if one.name in used:
        return Verdict.SPARE if one.condemned else Verdict.USED
    age_ms = now_unix_ms - one.written_unix_ms
    if one.condemned:
        return Verdict.DELETE if age_ms >= ages.condemned_ms else Verdict.WAIT
    return Verdict.CONDEMN if age_ms >= ages.unused_ms else Verdict.YOUNG


def sweep(inventory: Inventory, used: frozenset[str], ages: Ages) -> Sweep:
    """What becomes of each object; what is to be written is taken oldest first."""
    decided = Sweep()
    for one in sorted(inventory.objects, key=lambda one: (one.written_unix_ms, one.name)):
        decided.of(judge(one, used, inventory.now_unix_ms, ages)).append(one)
    left = SWEPT_AT_ONCE_MAX
    for verdict in (Verdict.SPARE, Verdict.DELETE, Verdict.CONDEMN):
        del decided.of(verdict)[left:]
        left -= len(decided.of(verdict))
    return decided


def forsaken(
    unclaimed: Iterable[str], seen_since_ms: dict[str, int], now_unix_ms: int, ages: Ages
) -> list[str]:
    """Contents that have belonged to no object for as long as unused ones may stay.

    `seen_since_ms` remembers since when, and forgets what is gone or claimed.
    """
    there = set(unclaimed)
    for gone in seen_since_ms.keys() - there:
        del seen_since_ms[gone]
    for content in there:
        seen_since_ms.setdefault(content, now_unix_ms)
    old = [
        content
        for content, since_ms in seen_since_ms.items()
        if now_unix_ms - since_ms >= ages.unused_ms
    ]
    return sorted(old)[:SWEPT_AT_ONCE_MAX]
