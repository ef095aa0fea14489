"""What a fault cost, in figures: collected by the tests, printed as one table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """Of one fault under load. Seconds; `full_service_s` from the moment the cause was gone, or
    from the fault where it goes by itself.
    """

    fault: str
    answered: int
    failed: int
    stream_gap_s: float
    full_service_s: float
    records_lost: int
    charged_twice: int


_HEADINGS = (
    "fault",
    "answered",
    "failed",
    "longest gap of a stream",
    "full service after",
    "cost records lost",
    "charged twice",
)


def table(rows: Sequence[Figures]) -> str:
    """For people, in Markdown."""
    lines = [_HEADINGS, ("---", *["---:"] * (len(_HEADINGS) - 1))]
    for row in rows:
        gap, full = f"{row.stream_gap_s:.1f} s", f"{row.full_service_s:.1f} s"
        counts = (str(row.records_lost), str(row.charged_twice))
        lines.append((row.fault, str(row.answered), str(row.failed), gap, full, *counts))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
