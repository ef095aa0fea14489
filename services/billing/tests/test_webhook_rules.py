"""Webhooks without any I/O: signatures, retries, and when a balance is told."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from busbar_billing.adapters.postgres.outbox import write_payload
from busbar_billing.domain.balance_alerts import Level, Watched, moved, news
from busbar_billing.domain.webhooks import (
    DISABLE_AFTER,
    RETRY_AFTER_S,
    Attempt,
    EventType,
    Notice,
    after_failure,
    checked_event_types,
    checked_overlap,
    secret_text,
    signed_headers,
    signing_secret,
)
from busbar_errors import Rejected
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

NOW = datetime.now(UTC)
SALTS = [b"a" * 32, b"b" * 32]
SECRETS = [signing_secret(b"of the service", salt) for salt in SALTS]
NOTICE = Notice("t1", EventType.BALANCE_LOW, {"balance_nanos": 5, "note": "größer"})


def test_signatures_are_what_the_standard_says() -> None:
    now = datetime.now(UTC)
    payload = write_payload(NOTICE, now).encode()
    headers = signed_headers("msg_1", int(now.timestamp()), payload, SECRETS)
    for secret in SECRETS:
        verified = Webhook(secret_text(secret)).verify(payload, headers)

        assert verified == json.loads(payload)
    assert json.loads(payload)["data"] == NOTICE.data
    assert SECRETS[0] != SECRETS[1] != b"of the service"


@pytest.mark.parametrize("field", ["webhook-id", "webhook-timestamp", "webhook-signature", "body"])
def test_a_message_that_was_changed_is_not_verified(field: str) -> None:
    now = datetime.now(UTC)
    payload = write_payload(NOTICE, now).encode()
    headers = signed_headers("msg_1", int(now.timestamp()), payload, SECRETS[:1])
    if field == "body":
        payload += b" "
    elif field == "webhook-timestamp":
        headers[field] = str(int(headers[field]) + 1)
    elif field == "webhook-id":
        headers[field] = "msg_2"
    else:
        headers = signed_headers("msg_1", int(now.timestamp()), payload, SECRETS[1:])

    with pytest.raises(WebhookVerificationError):
        Webhook(secret_text(SECRETS[0])).verify(payload, headers)


@given(st.floats(0, 1), st.sampled_from([None, 302, 400, 404, 429, 500]))
def test_pauses_grow_and_end_within_a_day(luck: float, status: int | None) -> None:
    verdicts = [
        after_failure(Attempt(status, "x"), number, timedelta(hours=20), luck)
        for number in range(1, len(RETRY_AFTER_S) + 2)
    ]
    pauses = [one.retry_in for one in verdicts[:-1]]

    assert verdicts[-1].retry_in is None
    assert all(one is not None for one in pauses)
    kept = [one for one in pauses if one is not None]
    assert all(first <= second for first, second in pairwise(kept))
    assert sum(kept, timedelta()) <= timedelta(hours=24 * 1.2)
    assert not any(one.disable for one in verdicts)


def test_an_endpoint_is_disabled_when_it_is_gone_or_took_nothing_for_long() -> None:
    last = len(RETRY_AFTER_S) + 1
    gone = after_failure(Attempt(410), 1, timedelta(), 0.5)
    long = after_failure(Attempt(500), last, DISABLE_AFTER, 0.5)
    not_yet = after_failure(Attempt(500), last, DISABLE_AFTER - timedelta(seconds=1), 0.5)
    in_between = after_failure(Attempt(500), 3, timedelta(days=30), 0.5)

    assert gone.disable
    assert long.disable
    assert not not_yet.disable
    assert in_between.retry_in
    assert not in_between.disable


@pytest.mark.parametrize(
    ("status", "delivered"),
    [
        (200, True),
        (204, True),
        (299, True),
        (301, False),
        (404, False),
        (503, False),
        (None, False),
    ],
)
def test_only_a_2xx_is_a_delivery(status: int | None, delivered: bool) -> None:
    assert Attempt(status).delivered is delivered


def test_types_and_overlaps_are_checked() -> None:
    both = [EventType.PAYMENT_SUCCEEDED, EventType.BALANCE_LOW, EventType.BALANCE_LOW]

    assert checked_event_types(both) == (EventType.BALANCE_LOW, EventType.PAYMENT_SUCCEEDED)
    assert checked_overlap(None, NOW) is None
    with pytest.raises(Rejected):
        checked_event_types([EventType.PING])
    for wrong in (NOW - timedelta(seconds=1), NOW + timedelta(days=8)):
        with pytest.raises(Rejected):
            checked_overlap(wrong, NOW)


LOW = 1_000_000_000


@pytest.mark.parametrize(
    ("before", "balance", "refused", "after"),
    [
        (Level.FINE, LOW, None, Level.FINE),
        (Level.FINE, LOW - 1, None, Level.LOW),
        (Level.FINE, 0, None, Level.EXHAUSTED),
        (Level.FINE, -5, None, Level.EXHAUSTED),
        (Level.FINE, 2 * LOW, 3 * LOW, Level.EXHAUSTED),
        (Level.FINE, 2 * LOW, 2 * LOW, Level.FINE),
        (Level.LOW, LOW, None, Level.LOW),  # a voided charge is no top-up
        (Level.LOW, LOW + LOW // 10, None, Level.FINE),
        (Level.LOW, 7, 8, Level.EXHAUSTED),
        (Level.EXHAUSTED, 1, None, Level.EXHAUSTED),
        (Level.EXHAUSTED, LOW // 2, None, Level.LOW),
        (Level.EXHAUSTED, 2 * LOW, None, Level.FINE),
    ],
)
def test_a_balance_is_where_it_is(
    before: Level, balance: int, refused: int | None, after: Level
) -> None:
    assert moved(Watched("t", "USD", balance, LOW, before), refused).level is after


def test_without_a_threshold_only_an_exhausted_balance_is_told() -> None:
    spent, owing = Watched("t", "USD", 0, 0), Watched("t", "USD", -5, 0)

    assert moved(Watched("t", "USD", 1, 0)).level is Level.FINE
    assert moved(spent).level is Level.EXHAUSTED
    assert news(spent, Level.EXHAUSTED) == news(owing, Level.EXHAUSTED) == [Level.EXHAUSTED]


def told_of(looks: Iterable[tuple[int, int | None]], low: int) -> list[tuple[Level, int]]:
    """What is told, and with which balance, when these balances are seen in turn, each with below
    what a request was refused meanwhile."""
    watched, told = Watched("t", "USD", 0, low), list[tuple[Level, int]]()
    for balance, refused in looks:
        seen = replace(watched, balance_nanos=balance)
        watched = moved(seen, refused)
        told += [(level, balance) for level in news(seen, watched.level)]
    return told


@pytest.mark.parametrize(
    ("looks", "told"),
    [
        ([(2 * LOW, None), (0, None)], [(Level.LOW, 0), (Level.EXHAUSTED, 0)]),
        ([(9, 10)], [(Level.LOW, 9), (Level.EXHAUSTED, 9)]),
        # Refused above the threshold; what is smaller is served on, and falls below it.
        (
            [(2 * LOW, 3 * LOW), (LOW + 1, None), (LOW - 1, None), (LOW // 2, LOW), (0, None)],
            [(Level.EXHAUSTED, 2 * LOW), (Level.LOW, LOW - 1)],
        ),
        # The top-up is a new beginning, though less than there was when it was told.
        (
            [(2 * LOW, 3 * LOW), (0, None), (LOW, None), (LOW, 2 * LOW)],
            [(Level.EXHAUSTED, 2 * LOW), (Level.LOW, 0), (Level.EXHAUSTED, LOW)],
        ),
        # A voided charge is none.
        ([(0, None), (LOW // 20, None), (0, None)], [(Level.LOW, 0), (Level.EXHAUSTED, 0)]),
    ],
)
def test_each_fall_is_told_once(
    looks: list[tuple[int, int | None]], told: list[tuple[Level, int]]
) -> None:
    assert told_of(looks, LOW) == told


@given(
    st.lists(st.tuples(st.integers(1, 3 * LOW), st.none() | st.integers(1, 3 * LOW)), max_size=60),
    st.integers(0, LOW),
)
def test_while_a_balance_only_falls_each_level_is_told_once(
    looks: list[tuple[int, int | None]], low: int
) -> None:
    falling = sorted(looks, key=lambda look: -look[0])
    told = [level for level, _ in told_of(falling, low)]

    assert len(told) == len(set(told))
    assert (Level.LOW in told) == any(balance < low for balance, _ in looks)
    refused = any(below is not None and balance < below for balance, below in looks)
    assert (Level.EXHAUSTED in told) == refused
