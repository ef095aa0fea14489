"""When a tenant's balance is so low that it should be told, once for each time it gets there."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from busbar_errors import Rejected

from busbar_billing.domain.money import TOP_UP_NANOS_MAX

REARM_DIVISOR = 10
"""A balance is out of a level once it is this part of the threshold beyond it: what a voided charge
gives back is no new beginning."""
REARM_NANOS_MIN = 10**7


class Level(StrEnum):
    """Where a balance stands, the worst last."""

    FINE = "fine"
    LOW = "low"
    EXHAUSTED = "exhausted"


_ORDER = list(Level)


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
    """The balance when the level was reached."""


def level_now(watched: Watched, refused_nanos: int | None = None) -> Level:
    """Where the balance stands now. `refused_nanos`: the least that a gateway asked for in vain."""
    balance = watched.balance_nanos
    if balance <= 0 or (refused_nanos is not None and balance < refused_nanos):
        return Level.EXHAUSTED
    margin = watched.low_nanos // REARM_DIVISOR
    if watched.level is Level.EXHAUSTED:
        recovered = max(margin, REARM_NANOS_MIN)
        if balance < watched.told_nanos + recovered:
            return Level.EXHAUSTED
        return Level.LOW if balance < watched.low_nanos else Level.FINE
    still = margin if watched.level is Level.LOW else 0
    return Level.LOW if balance < watched.low_nanos + still else Level.FINE


def is_news(before: Level, now: Level) -> bool:
    """Whether a tenant is told that it went from one level to another: when it got worse."""
    return _ORDER.index(now) > _ORDER.index(before)


def checked_threshold(low_nanos: int) -> int:
    """A threshold; raise Rejected when it makes no sense."""
    if not 0 <= low_nanos <= TOP_UP_NANOS_MAX:
        raise Rejected(f"low_balance_nanos must be between 0 and {TOP_UP_NANOS_MAX}")
    return low_nanos
