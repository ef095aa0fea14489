"""What the auditor says of prices that changed, rightly and behind its back."""

from __future__ import annotations

import pytest
from busbar_runtime.pytest_plugin import Database
from planted import Parts, measure, plant, record

DOUBLED_PRICE = (
    "ALTER TABLE prices DROP CONSTRAINT prices_pkey CASCADE",
    """
    INSERT INTO prices (version, price_class, component, amount_nanos, per_units)
    SELECT version, price_class, component, 2 * amount_nanos, per_units FROM prices
    WHERE version = 2 AND price_class = 'chat-small' AND component = 'output_token'
    """,
)
DOUBLED_VERSION = (
    "ALTER TABLE price_books DROP CONSTRAINT price_books_begin_alone",
    """
    INSERT INTO price_books
    (version, currency, effective_from, charge_quantum_nanos, tenant_id, created_at)
    OVERRIDING SYSTEM VALUE
    SELECT -1, currency, effective_from, charge_quantum_nanos, tenant_id, created_at
    FROM price_books WHERE version = 2
    """,
    """
    INSERT INTO prices SELECT -1, price_class, component, amount_nanos + 1, per_units, free_units
    FROM prices WHERE version = 2
    """,
)
LOST_CLASSES = ("DELETE FROM price_tiers WHERE version = 2", "DELETE FROM prices WHERE version = 2")


@pytest.mark.parametrize(
    ("statements", "breach"),
    [
        (DOUBLED_PRICE, ("prices_plain", "price book 2")),
        (DOUBLED_VERSION, ("prices_plain", "price book ")),
        (LOST_CLASSES, ("charges_rated_again", "")),
        (
            ("UPDATE prices SET amount_nanos = 2 * amount_nanos WHERE version = 2",),
            ("charges_rated_again", ""),
        ),
    ],
    ids=["a price twice", "a version twice", "no prices", "a price changed"],
)
async def test_prices_changed_behind_a_running_auditor_are_found_by_its_next_audit(
    ledger_copy: Database, busy: Parts, statements: tuple[str, ...], breach: tuple[str, str]
) -> None:
    books = busy.books
    assert await busy.audited(books=books) == []

    await plant(ledger_copy, *statements)

    check, subject = breach
    breaches = await busy.audited(books=books)
    found = [(one.check, one.subject) for one in breaches]
    assert [one for one in found if one[0] == check and one[1].startswith(subject)], found
    assert await busy.audited_from_seals() == breaches


SAME_PRICES_AGAIN = """
    WITH begun AS (
        INSERT INTO price_books (currency, effective_from, charge_quantum_nanos, tenant_id)
        SELECT currency, clock_timestamp(), charge_quantum_nanos, tenant_id
        FROM price_books WHERE version = 2
        RETURNING version
    )
    INSERT INTO prices (version, price_class, component, amount_nanos, per_units)
    SELECT begun.version, price_class, component, amount_nanos, per_units
    FROM begun, prices WHERE prices.version = 2
"""
ENERGY_DEARER = """
    INSERT INTO energy_prices (site, effective_from, currency, kwh_nanos)
    SELECT 'r1/s1', clock_timestamp(), 'USD', 2 * max(kwh_nanos) FROM energy_prices
"""


async def test_what_is_rated_between_prices_of_one_minute_is_no_breach(
    ledger_copy: Database, busy: Parts
) -> None:
    async with busy.pool.transaction() as connection:
        before = await connection.fetchval("SELECT max(version) FROM price_books")
        await connection.execute(SAME_PRICES_AGAIN)
    async with busy.pool.transaction() as connection:  # committed after the posting
        await connection.execute(SAME_PRICES_AGAIN)
        answered = record()
        await busy.post(answered)

    async with busy.pool.connection() as connection:
        version = "SELECT price_version FROM usage_records WHERE request_id = $1"
        assert await connection.fetchval(version, answered.request_id) == before + 1
    assert await busy.audited() == []

    async with busy.pool.transaction() as connection:
        await connection.execute(SAME_PRICES_AGAIN)
    later = f"UPDATE usage_records SET price_version = {before + 3}"
    await plant(ledger_copy, f"{later} WHERE request_id = '{answered.request_id}'")
    said = f"was rated by price book {before + 3}; in force was {before + 2}"
    assert said in [one.detail for one in await busy.audited()]


async def test_energy_booked_between_prices_of_one_minute_is_no_breach(busy: Parts) -> None:
    async with busy.pool.transaction() as connection:
        await connection.execute(ENERGY_DEARER)
    async with busy.pool.transaction() as connection:  # committed after the booking
        await connection.execute(ENERGY_DEARER)
        await measure(busy.pool, [record()], run="run-3")

    assert await busy.audited() == []
