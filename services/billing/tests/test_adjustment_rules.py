"""What is spent first, given back last, and sums to zero."""

from __future__ import annotations

from uuid import UUID

from busbar_billing.domain import ledger, promotions
from busbar_billing.domain.promotions import Charged, Credit
from hypothesis import given
from hypothesis import strategies as st

A, B = UUID(int=10), UUID(int=11)


def test_the_credit_that_expires_first_is_spent_first_and_own_money_last() -> None:
    unspent = [Credit(A, "acme", 50), Credit(B, "acme", 30)]
    charges = [Charged(UUID(int=n), "acme", UUID(int=100 + n), 40) for n in range(3)]
    spent = promotions.spend(unspent, [*charges, Charged(B, "bolt", B, 7)])

    assert [(one.transfer_id.int, one.credit_id, one.amount_nanos) for one in spent] == [
        (0, A, 40),
        (1, A, 10),
        (1, B, 30),
    ]


amounts = st.integers(0, 1_000)


@given(st.lists(amounts, max_size=5), st.lists(amounts, max_size=8))
def test_spending_never_exceeds_a_credit_or_a_charge(given_: list[int], due: list[int]) -> None:
    unspent = [Credit(UUID(int=n), "acme", amount) for n, amount in enumerate(given_) if amount]
    charges = [Charged(UUID(int=n), "acme", UUID(int=n), amount) for n, amount in enumerate(due)]
    spent = promotions.spend(unspent, charges)

    assert sum(one.amount_nanos for one in spent) == min(sum(given_), sum(due))
    for credit in unspent:
        of_it = [one.amount_nanos for one in spent if one.credit_id == credit.credit_id]
        assert sum(of_it) <= credit.unspent_nanos
        assert all(amount > 0 for amount in of_it)
    for charge in charges:
        by_it = [one.amount_nanos for one in spent if one.transfer_id == charge.transfer_id]
        assert sum(by_it) <= charge.amount_nanos


@given(st.integers(1, 1_000), st.integers(0, 1_000), st.lists(st.integers(1, 400)))
def test_refunds_give_own_money_back_first_and_all_credit_in_the_end(
    charged: int, spent: int, refunds: list[int]
) -> None:
    spent, before, given_back = min(spent, charged), 0, 0
    for wanted in [*refunds, charged]:
        part = min(wanted, charged - before)
        credit = promotions.credit_in_refund(charged, spent, before, part)
        before, given_back = before + part, given_back + credit

        assert 0 <= credit <= part
        assert given_back == max(0, before - (charged - spent))
    assert given_back == spent


@given(st.lists(st.integers(1, 100), min_size=1, max_size=4), st.integers(0, 500))
def test_what_is_given_back_goes_to_the_credit_spent_last(parts: list[int], amount: int) -> None:
    spent = [(UUID(int=n), part) for n, part in enumerate(parts)]
    given_back = promotions.give_back(A, B, spent, amount)

    assert -sum(one.amount_nanos for one in given_back) == min(amount, sum(parts))
    assert [one.credit_id.int for one in given_back] == sorted(
        (one.credit_id.int for one in given_back), reverse=True
    )
    for one in given_back:
        assert 0 < -one.amount_nanos <= parts[one.credit_id.int]


@given(st.integers(1, 10**15), st.uuids())
def test_adjustments_sum_to_zero(amount: int, charge_id: UUID) -> None:
    credit = promotions.promotional_credit(A, "acme", amount, "USD", "r")
    expiry = promotions.promotional_expiry(B, Credit(A, "acme", amount), amount, "USD")
    charge = ledger.top_up(charge_id, "acme", amount, "USD", "r")
    refund = promotions.refund(B, charge, amount, "USD", reference="r", reason="x")

    assert ledger.balances([credit, expiry]) == {}
    assert ledger.totals(refund.postings) == {"USD": 0}
