"""What the auditor says of payments and credits that are kept otherwise than they were posted."""

from __future__ import annotations

import pytest
from billing_parts import WARRANTS
from busbar_billing.adapters.postgres.adjustments import Adjustments
from busbar_billing.adapters.postgres.journal import Journal
from busbar_billing.adapters.postgres.payments import Payments
from busbar_billing.domain.audit.findings import Check
from busbar_billing.domain.payments import Payment
from busbar_billing.usecases.adjustments import withdraw_credit
from busbar_billing.usecases.payments import WAITING, ProviderEvent, take_event
from busbar_runtime.pytest_plugin import Database
from planted import PAYMENT, Parts, plant
from uuid_utils.compat import uuid7

PAID = "UPDATE payments SET paid_nanos = paid_nanos + 7"
POSTED = f"{PAID}, posted_paid_nanos = posted_paid_nanos + 7"
LESS_REFUNDED = "UPDATE payments SET refunded_nanos = refunded_nanos - 7"
RETURNED = f"{LESS_REFUNDED}, posted_returned_nanos = posted_returned_nanos - 7"
NOBODYS = "UPDATE payments SET tenant_id = NULL"
LATER = "UPDATE {} SET expires_at = expires_at + interval '1 day' WHERE tenant_id = 'acme'"
THE_CREDIT = "SELECT 'credit ' || credit_id FROM promotional_credits WHERE tenant_id = 'acme'"


@pytest.mark.parametrize("harm", [PAID, POSTED, LESS_REFUNDED, RETURNED, NOBODYS])
async def test_a_payment_that_is_kept_otherwise_is_found(
    ledger_copy: Database, busy: Parts, harm: str
) -> None:
    await plant(ledger_copy, harm)

    found = await busy.audited()

    assert {(one.check, one.subject) for one in found} == {
        (Check.PAYMENTS_POSTED, f"payment {PAYMENT}")
    }
    assert await busy.audited_from_seals() == found


async def test_payments_of_which_something_is_still_to_be_told_are_no_breach(busy: Parts) -> None:
    payments = Payments(busy.pool, Journal(busy.pool, WARRANTS))
    for told in (
        Payment("stripe:pi_2", "USD", "", paid_nanos=10**9),
        Payment("stripe:pi_3", "USD", "acme", refunded_nanos=10**9),
        Payment("stripe:pi_4", "USD", "", lost_nanos=10**9),
    ):
        event = ProviderEvent(f"evt_{uuid7().hex}", "test", b"{}", told)
        assert await take_event(payments, event, uuid7) == WAITING

    assert await busy.audited() == []


@pytest.mark.parametrize("table", ["promotional_credits", "promotional_unspent"])
async def test_a_credit_that_ends_otherwise_is_found(
    ledger_copy: Database, busy: Parts, table: str
) -> None:
    subject = await plant(ledger_copy, LATER.format(table), fetch=THE_CREDIT)

    found = await busy.audited()

    assert {(one.check, one.subject) for one in found} == {(Check.CREDITS_SPENT, subject)}
    assert await busy.audited_from_seals() == found


async def test_a_credit_that_was_withdrawn_is_no_breach(busy: Parts) -> None:
    async with busy.pool.connection() as connection:
        found = await connection.fetchval(THE_CREDIT)
    adjustments = Adjustments(busy.pool, Journal(busy.pool, WARRANTS))

    await withdraw_credit(
        adjustments, credit_id=found.removeprefix("credit "), reason="a slip", transfer_id=uuid7()
    )

    assert await busy.audited() == []
