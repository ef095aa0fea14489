"""Which of the database's errors a later try may survive."""

from __future__ import annotations

import asyncpg
import pytest
from busbar_billing.adapters.postgres.database import in_our_terms
from busbar_errors import Unavailable


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        asyncpg.ConnectionDoesNotExistError("gone"),
        asyncpg.InternalClientError("cannot switch to state 12; another operation is in progress"),
        asyncpg.DiskFullError("no space left"),
        asyncpg.DeadlockDetectedError("deadlock"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_passes_is_unavailable(error: Exception) -> None:
    with pytest.raises(Unavailable, match="does not answer"), in_our_terms():
        raise error


@pytest.mark.parametrize(
    "error", [asyncpg.UniqueViolationError("twice"), asyncpg.DataError("text"), KeyError("bug")]
)
def test_what_would_fail_again_is_raised_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)), in_our_terms():
        raise error
