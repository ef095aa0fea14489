"""What the auditor says of prices that changed, rightly and behind its back."""

from __future__ import annotations

import time
from dataclasses import replace

import asyncpg
import pytest
from busbar_billing.adapters.postgres.database import Connection
from busbar_billing.domain.audit.findings import Check
from busbar_billing.domain.prices import Component, Price, PriceBook, Tier
from busbar_errors import Conflict
from busbar_runtime.pytest_plugin import Database
from planted import DAY_NS, Parts, measure, plant, record

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


NOT_USED_YET = PriceBook(
    0,
    "USD",
    (time.time_ns() // DAY_NS + 365) * DAY_NS,
    1,
    {"default": {Component.REQUEST: Price(5, 1, free_units=7, tiers=(Tier(9, 4, 1),))}},
    note="from next year on",
)


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE prices SET amount_nanos = 7 * amount_nanos WHERE version = {}",
        "UPDATE prices SET free_units = 8 WHERE version = {}",
        "UPDATE price_tiers SET above_units = 10 WHERE version = {}",
        "DELETE FROM price_tiers WHERE version = {}",
        "UPDATE price_books SET effective_from = now() + interval '3 days' WHERE version = {}",
        "UPDATE price_books SET charge_quantum_nanos = 1000 WHERE version = {}",
        "UPDATE price_books SET tenant_id = 'umbrella' WHERE version = {}",
        "UPDATE price_books SET created_at = now() - interval '3 days' WHERE version = {}",
        "DELETE FROM warrants WHERE subject = 'price book {}'",
        "DELETE FROM price_books WHERE version = {}",
    ],
)
async def test_a_price_book_that_is_not_as_published_is_found_before_it_is_used(
    ledger_copy: Database, busy: Parts, harm: str
) -> None:
    version = (await busy.prices.add(NOT_USED_YET)).version
    assert await busy.audited() == []

    await plant(ledger_copy, harm.format(version))
    found = await busy.audited()

    assert {(one.check, one.subject) for one in found} == {
        (Check.PRICES_PUBLISHED, f"price book {version}")
    }
    assert await busy.audited_from_seals() == found


async def test_prices_that_billing_did_not_publish_are_found(busy: Parts) -> None:
    async with busy.pool.transaction() as connection:  # whatever the service itself may write
        version = await connection.fetchval(SAME_PRICES_AGAIN)

    found = [(one.check, one.subject) for one in await busy.audited()]
    assert found == [(Check.PRICES_PUBLISHED, f"price book {version}")]


async def test_prices_that_were_published_and_ended_are_no_breach(busy: Parts) -> None:
    of_a_tenant = replace(
        NOT_USED_YET,
        tenant_id="umbrella",
        effective_from_unix_ns=time.time_ns() + DAY_NS + 1,
        effective_until_unix_ns=time.time_ns() + 2 * DAY_NS + 1,
    )
    for book in (NOT_USED_YET, of_a_tenant):
        await busy.prices.add(book)
    with pytest.raises(Conflict):
        await busy.prices.add(NOT_USED_YET)  # its number was given, and is nobody's

    assert await busy.audited() == []


async def test_the_service_cannot_say_when_prices_were_published(busy: Parts) -> None:
    backdated = """
        INSERT INTO price_books (currency, effective_from, charge_quantum_nanos, created_at)
        VALUES ('USD', now(), 1, now() - interval '1 day')
    """
    async with busy.pool.connection() as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(backdated)


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
    RETURNING version
"""
ENERGY_DEARER = """
    INSERT INTO energy_prices (site, effective_from, currency, kwh_nanos)
    SELECT 'r1/s1', clock_timestamp(), 'USD', 2 * max(kwh_nanos) FROM energy_prices
"""


async def publish_again(busy: Parts, connection: Connection) -> None:
    """The prices of version 2 once more, from now on, as billing does it."""
    version = await connection.fetchval(SAME_PRICES_AGAIN)
    await busy.prices.vouch(connection, version)


async def test_what_is_rated_between_prices_of_one_minute_is_no_breach(
    ledger_copy: Database, busy: Parts
) -> None:
    async with busy.pool.transaction() as connection:
        before = await connection.fetchval("SELECT max(version) FROM price_books")
        await publish_again(busy, connection)
    async with busy.pool.transaction() as connection:  # committed after the posting
        await publish_again(busy, connection)
        answered = record()
        await busy.post(answered)

    async with busy.pool.connection() as connection:
        version = "SELECT price_version FROM usage_records WHERE request_id = $1"
        assert await connection.fetchval(version, answered.request_id) == before + 1
    assert await busy.audited() == []

    async with busy.pool.transaction() as connection:
        await publish_again(busy, connection)
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
