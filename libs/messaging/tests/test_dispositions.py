"""What becomes of a message whose handler failed."""

from __future__ import annotations

import pytest
from busbar_errors import Conflict, NotFound, Rejected, Unavailable
from busbar_messaging.dead_letters import unix_ns_of_text
from busbar_messaging.dispositions import BUG_DELIVERIES_MAX, DeadLetter, Retry, dispose
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("error", [Rejected("absurd"), NotFound("gone")])
def test_what_can_never_succeed_is_dead_at_once(error: Exception) -> None:
    assert isinstance(dispose(error, deliveries=1), DeadLetter)


@pytest.mark.parametrize("error", [Conflict("lost a race"), Unavailable("no database")])
@given(deliveries=st.integers(1, 10_000))
def test_what_may_pass_is_retried_for_ever_and_never_faster_than_before(
    error: Exception, deliveries: int
) -> None:
    now, later = dispose(error, deliveries), dispose(error, deliveries + 1)

    assert isinstance(now, Retry)
    assert isinstance(later, Retry)
    assert 0 < now.delay_s <= later.delay_s <= 30


def test_a_bug_is_retried_a_few_times_and_then_dead_with_its_reason() -> None:
    outcomes = [dispose(KeyError("x"), n) for n in range(1, BUG_DELIVERIES_MAX + 1)]

    assert all(isinstance(outcome, Retry) for outcome in outcomes[:-1])
    assert outcomes[-1] == DeadLetter(
        f"gave up after {BUG_DELIVERIES_MAX} deliveries: KeyError('x')"
    )


@pytest.mark.parametrize(
    ("text", "unix_ns"),
    [
        ("2026-11-21T07:34:39.889571123Z", 1_795_246_479_889_571_123),
        ("2026-11-21T07:34:39.5Z", 1_795_246_479_500_000_000),
        ("2026-11-21T07:34:39Z", 1_795_246_479_000_000_000),
    ],
)
def test_the_servers_times_are_read_to_the_nanosecond(text: str, unix_ns: int) -> None:
    assert unix_ns_of_text(text) == unix_ns
