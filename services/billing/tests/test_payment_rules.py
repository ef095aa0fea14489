"""Payments folded from facts in any order, any number of times."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from uuid import uuid4

import pytest
from busbar_billing.adapters.stripe_payments import storable_json
from busbar_billing.domain.ledger import AccountKind
from busbar_billing.domain.payments import (
    Payment,
    checked_payment,
    minor_of_nanos,
    nanos_of_minor,
    payment_returned,
)
from busbar_errors import Rejected
from hypothesis import given
from hypothesis import strategies as st

PAID = 25 * 10**9


def told(**facts: int | str) -> Payment:
    return replace(Payment("stripe:pi_1", "USD"), **facts)


FACTS = [
    told(tenant_id="acme", paid_nanos=PAID),
    told(refunded_nanos=5 * 10**9),
    told(refunded_nanos=10 * 10**9),
    told(lost_nanos=3 * 10**9),
]


def settled(facts: list[Payment]) -> tuple[int, int]:
    """What was added to and taken from the balance after all of them, posting as they come."""
    payment, added, taken = told(), 0, 0
    for fact in facts:
        payment = payment.learn(fact)
        if due := payment.due_paid_nanos:
            added += due
            payment = replace(payment, posted_paid_nanos=payment.posted_paid_nanos + due)
        if back := payment.due_returned_nanos:
            taken += back
            payment = replace(payment, posted_returned_nanos=payment.posted_returned_nanos + back)
    return added, taken


def test_the_order_of_the_facts_does_not_matter() -> None:
    outcomes = {settled(list(order)) for order in itertools.permutations(FACTS)}

    assert outcomes == {(PAID, 13 * 10**9)}


@given(st.lists(st.sampled_from(FACTS), max_size=12))
def test_repeats_and_any_part_of_the_facts_never_return_more_than_was_paid(
    facts: list[Payment],
) -> None:
    added, taken = settled(facts)

    assert added == (PAID if FACTS[0] in facts else 0)
    assert 0 <= taken <= added
    assert settled(facts + facts) == (added, taken)


@pytest.mark.parametrize(
    "contradiction",
    [
        told(currency="EUR"),
        told(tenant_id="somebody-else"),
        told(tenant_id="acme", paid_nanos=PAID + 1),
    ],
    ids=["currency", "tenant", "amount"],
)
def test_facts_that_contradict_each_other_are_refused(contradiction: Payment) -> None:
    payment = told().learn(FACTS[0])

    with pytest.raises(Rejected):
        payment.learn(contradiction)


@pytest.mark.parametrize("amount", [-1, 10**15 + 1, 2**63])
def test_an_amount_that_cannot_be_is_refused(amount: int) -> None:
    with pytest.raises(Rejected):
        checked_payment(told(paid_nanos=amount))


@pytest.mark.parametrize(
    ("minor", "currency", "nanos"),
    [(1, "USD", 10**7), (500, "JPY", 500 * 10**9), (1, "KWD", 10**6)],
)
def test_minor_units_are_those_of_the_currency(minor: int, currency: str, nanos: int) -> None:
    assert nanos_of_minor(minor, currency) == nanos
    assert minor_of_nanos(nanos, currency) == minor
    with pytest.raises(Rejected):
        minor_of_nanos(nanos + 1, currency)


@pytest.mark.parametrize(
    ("available", "taken", "owed"), [(100, 40, 0), (40, 40, 0), (15, 15, 25), (0, 0, 40)]
)
def test_what_the_balance_lacks_is_owed(available: int, taken: int, owed: int) -> None:
    payment = told(tenant_id="acme", paid_nanos=100, posted_paid_nanos=100, refunded_nanos=40)
    transfer = payment_returned(uuid4(), payment, 40, available)
    by_kind = {line.account.kind: line.amount_nanos for line in transfer.postings}

    assert by_kind.get(AccountKind.TENANT_AVAILABLE, 0) == -taken
    assert by_kind.get(AccountKind.TENANT_RECEIVABLE, 0) == -owed
    assert by_kind[AccountKind.PAYMENTS_CLEARING] == 40


@given(st.dictionaries(st.text(), st.text(), max_size=4))
def test_whatever_a_payer_typed_can_be_stored_and_the_rest_stays(typed: dict[str, str]) -> None:
    stored = storable_json(json.dumps(typed).encode()).decode()

    assert json.loads(stored) == {
        name.replace("\0", "\ufffd"): text.replace("\0", "\ufffd") for name, text in typed.items()
    }


def test_a_lone_surrogate_and_a_literal_backslash_are_told_apart() -> None:
    assert json.loads(storable_json(b'{"a": "x\\ud800\\u0000\\\\u0000"}')) == {
        "a": "x?\ufffd\\u0000"
    }
