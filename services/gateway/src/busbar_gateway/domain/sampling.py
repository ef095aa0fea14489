"""Which requests are traced, decided once at the edge."""

from __future__ import annotations

from enum import Enum, auto


class Verdict(Enum):
    """Whether a request gets spans while it is served."""

    TRACED = auto()
    UNTRACED = auto()


def decide(ratio: float, draw: float, *, parent_sampled: bool) -> Verdict:
    """Decide from the configured ratio, a draw from [0, 1) and the customer's traceparent."""
    if parent_sampled or draw < ratio:
        return Verdict.TRACED
    return Verdict.UNTRACED


def worth_keeping(
    *, ours_failed: bool, first_byte_s: float | None, slow_after_s: float, total_s: float
) -> bool:
    """Whether an untraced request must be recorded afterwards all the same.

    `first_byte_s` is None when nothing was answered.
    """
    waited_s = total_s if first_byte_s is None else first_byte_s
    return ours_failed or waited_s > slow_after_s
