"""When a tenant's balance is so low that it should be told, once for each time it gets there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from busbar_errors import Rejected

from busbar_billing.domain.money import TOP_UP_NANOS_MAX

REARM_DIVISOR = 10
"""A balance is out of a level once it is this part of the threshold beyond it: what a voided charge
gives back is no new beginning."""
REARM_NANOS_MIN = 10**7


class Level(StrEnum):
    """Where a balance stands. Exhausted: it is zero, or did not cover a request, however much."""

    FINE = "fine"
    LOW = "low"
    EXHAUSTED = "exhausted"


@dataclass(frozen=True, slots=True)
class Watched:
    """A tenant's balance and what it was last told of it; amounts in nanos of its currency."""

    tenant_id: str
    currency: str
    balance_nanos: int
    """Available and held in leases, less what is owed."""
    low_nanos: int
    """Below this the balance is low; 0: never."""
    level: Level = Level.FINE
    told_nanos: int = 0
    """The balance when the level was reached; the least since, while it is exhausted."""


def moved(watched: Watched, refused_below_nanos: int | None = None) -> Watched:
    """The same as it is to be remembered now; equal where nothing is new. A request was refused
    because the balance was less than `refused_below_nanos`; None: none was."""
    level = _level_now(watched, refused_below_nanos)
    sunk = level is Level.EXHAUSTED and watched.balance_nanos < watched.told_nanos
    if level is watched.level and not sunk:
        return watched
    return replace(watched, level=level, told_nanos=watched.balance_nanos)


def _level_now(watched: Watched, refused_below_nanos: int | None) -> Level:
    balance = watched.balance_nanos
    if balance <= 0 or (refused_below_nanos is not None and balance < refused_below_nanos):
        return Level.EXHAUSTED
    margin = watched.low_nanos // REARM_DIVISOR
    if watched.level is Level.EXHAUSTED:
        recovered = max(margin, REARM_NANOS_MIN)
        if balance < watched.told_nanos + recovered:
            return Level.EXHAUSTED
        return Level.LOW if balance < watched.low_nanos else Level.FINE
    still = margin if watched.level is Level.LOW else 0
    return Level.LOW if balance < watched.low_nanos + still else Level.FINE


def news(before: Watched, now: Level) -> list[Level]:
    """What a tenant is told, in turn, when its balance, as in `before`, brings it to `now`.

    Each level is told for itself: a request may be refused before the balance is low, and
    a balance that is spent between two looks was low in between.
    """
    was_low = before.level is Level.LOW or (
        before.level is Level.EXHAUSTED and before.told_nanos < before.low_nanos
    )
    is_low = max(0, before.balance_nanos) < before.low_nanos
    found = [Level.LOW] if is_low and not was_low else []
    if now is Level.EXHAUSTED and before.level is not Level.EXHAUSTED:
        found.append(Level.EXHAUSTED)
    return found


def checked_threshold(low_nanos: int) -> int:
    """A threshold; raise Rejected when it makes no sense."""
    if not 0 <= low_nanos <= TOP_UP_NANOS_MAX:
        raise Rejected(f"low_balance_nanos must be between 0 and {TOP_UP_NANOS_MAX}")
    return low_nanos
