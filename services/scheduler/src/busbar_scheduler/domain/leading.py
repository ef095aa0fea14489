"""Failures of whoever leads."""

from __future__ import annotations

from busbar_errors import Conflict


class Deposed(Conflict):
    """A newer leader has written: whatever we still wanted to publish is void."""
