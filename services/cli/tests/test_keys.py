"""Keys as people see them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from busbar_cli.commands.keys import state_of

NOW = datetime(2026, 11, 22, 2, 38, 20, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expires_at", "revoked_at", "state"),
    [
        (None, None, "active"),
        ("2026-11-22T02:38:21Z", None, "active"),
        ("2026-11-22T02:38:20Z", None, "expired"),
        ("2026-11-22T03:38:20+02:00", None, "expired"),
        ("2026-11-22T02:37:33Z", "2026-11-20T00:00:00Z", "revoked"),
    ],
)
def test_a_key_is_active_only_while_it_is_accepted(
    expires_at: str | None, revoked_at: str | None, state: str
) -> None:
    assert state_of({"expires_at": expires_at, "revoked_at": revoked_at}, NOW) == state
