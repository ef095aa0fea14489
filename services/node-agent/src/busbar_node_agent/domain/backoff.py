"""How long to wait before trying again."""

from __future__ import annotations

_DOUBLINGS_MAX = 16


def backoff_s(failures: int, *, first_s: float, cap_s: float) -> float:
    """Seconds to wait after `failures` (from 1) failures in a row: doubles up to `cap_s`."""
    return min(cap_s, first_s * 2.0 ** min(max(failures, 1) - 1, _DOUBLINGS_MAX))
