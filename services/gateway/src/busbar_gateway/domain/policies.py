"""What a tenant may ask of the gateways, as billing says."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

WEIGHT_MAX = 10_000
"""More than this is treated as this, so that no tenant rounds the others to nothing."""


class Band(IntEnum):
    """Who is admitted first when slots are short; a smaller number goes first."""

    INTERACTIVE = 0
    STANDARD = 1
    BATCH = 2


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits hold over all gateways together; 0 means none."""

    band: Band = Band.STANDARD
    weight: int = 1
    """Share inside the band, relative to the other tenants'."""
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    """Input and output tokens."""
    max_in_flight: int = 0
    suspended_reason: str = ""
    """Why nothing is served, in words for the customer; empty means it is."""
    limited: bool = field(init=False, default=False)
    """Whether any limit is set."""

    def __post_init__(self) -> None:
        limited = bool(self.requests_per_minute or self.tokens_per_minute or self.max_in_flight)
        object.__setattr__(self, "limited", limited)


UNLIMITED = Policy()
"""Of a tenant of which billing has said nothing."""
