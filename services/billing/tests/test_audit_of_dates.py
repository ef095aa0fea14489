"""What the auditor says of transfers that were dated otherwise, and of clocks that are off."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from busbar_billing.domain.audit.findings import Check
from busbar_runtime.pytest_plugin import Database
from planted import Parts, id_of, plant, record

OF_CHARGE = "(SELECT transfer_id FROM usage_records ORDER BY transfer_id LIMIT 1)"
OF_TOP_UP = "(SELECT transfer_id FROM transfers WHERE idempotency_key = 'top_up:acme:first')"

PUT_OFF = """
    INSERT INTO warranted_since (what, since)
    SELECT 'dates', uuid_extract_timestamp(transfer_id) + interval '1 second'
    FROM transfers ORDER BY transfer_id DESC LIMIT 1
"""


def dated(table: str, which: str, days: int) -> str:
    """A row that says it was posted so many days later."""
    moved = f"UPDATE {table} SET posted_at = posted_at + interval '{days} days'"
    return f"{moved} WHERE transfer_id = {which}"


@pytest.mark.parametrize(
    ("harm", "which"),
    [
        pytest.param([dated("transfers", OF_CHARGE, -40)], OF_CHARGE, id="charge-back"),
        pytest.param(
            [dated("transfers", OF_CHARGE, -40), dated("usage_records", OF_CHARGE, -40)],
            OF_CHARGE,
            id="charge-and-record-back",
        ),
        pytest.param([dated("usage_records", OF_CHARGE, 40)], OF_CHARGE, id="record-on"),
        pytest.param([dated("transfers", OF_TOP_UP, -40)], OF_TOP_UP, id="top-up-back"),
    ],
)
async def test_what_is_dated_otherwise_is_found(
    ledger_copy: Database, busy: Parts, harm: list[str], which: str
) -> None:
    subject = await plant(ledger_copy, *harm, fetch=f"SELECT 'transfer ' || {which}")

    found = await busy.audited()

    misdated = {one.subject for one in found if one.check is Check.TRANSFERS_DATED}
    assert misdated == {subject}
    assert await busy.audited_from_seals() == found


@pytest.mark.parametrize("off", [timedelta(hours=-14), timedelta(hours=1), timedelta(hours=14)])
async def test_a_clock_that_is_hours_off_is_no_breach(busy: Parts, off: timedelta) -> None:
    await busy.post(record(), new_id=lambda: id_of(datetime.now(UTC) + off))

    assert await busy.audited() == []


async def test_what_was_posted_days_after_its_id_was_made_is_no_breach(busy: Parts) -> None:
    """Billing was paused in between, with the machine that it runs on."""
    await busy.post(record(), new_id=lambda: id_of(datetime.now(UTC) - timedelta(days=40)))

    assert await busy.audited() == []


async def test_a_record_that_comes_after_weeks_is_no_breach(busy: Parts) -> None:
    before_ns = int((datetime.now(UTC) - timedelta(days=30)).timestamp()) * 10**9

    await busy.post(record("umbrella", admitted_unix_ns=before_ns, finished_unix_ns=before_ns))

    assert await busy.audited() == []


async def test_the_owner_may_put_off_when_ids_are_compared(
    ledger_copy: Database, busy: Parts
) -> None:
    """As the runbook says it, after billing's clock was two days ahead."""
    await busy.post(record(), new_id=lambda: id_of(datetime.now(UTC) + timedelta(days=2)))
    assert {one.check for one in await busy.audited()} == {Check.TRANSFERS_DATED}

    owner = await asyncpg.connect(ledger_copy.admin_dsn)
    await owner.execute(PUT_OFF)
    await owner.close()

    assert await busy.audited() == []
    assert await busy.audited_from_seals() == []
