"""The transaction in which usage becomes money."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from uuid import UUID

from busbar_observability.tracing import parse_traceparent

from busbar_billing.adapters.postgres import metering, promotions
from busbar_billing.adapters.postgres.database import Connection, Database
from busbar_billing.adapters.postgres.giving_back import given_back_of, noted_statements
from busbar_billing.adapters.postgres.journal import TRANSFER_ROWS, Journal, read_transfers
from busbar_billing.adapters.postgres.leases import lock_balances, lock_leases, spend_leases
from busbar_billing.adapters.postgres.prices import Prices, from_unix_ns
from busbar_billing.adapters.postgres.reading import read_record
from busbar_billing.domain.leases import Lease
from busbar_billing.domain.ledger import Transfer
from busbar_billing.domain.metering import Meter
from busbar_billing.domain.prices import PriceBooks
from busbar_billing.domain.promotions import Credit, Spending
from busbar_billing.domain.statements import GivenBack
from busbar_billing.domain.usage import UsageRecord, UsageVoid
from busbar_billing.domain.warrants import void_says, void_subject
from busbar_billing.usecases.post_usage import RatedRecord, Voided

_LOCK = 0x62_75_73_62_61_72  # "busbar": any constant number, the same in every instance
_TENANTS_KNOWN_MAX = 100_000

_ADD_RECORDS = """
    INSERT INTO usage_records (
        request_id, tenant_id, key_id, deployment, price_class, api, outcome,
        admitted_at, finished_at, input_tokens, output_tokens, request_bytes, response_bytes,
        compute_us, node, attempt, gateway_id, trace_id,
        price_version, rated_class, amount_nanos, currency, transfer_id, cached_tokens, consumed,
        lease_id, project_id, stream_sequence
    )
    SELECT * FROM unnest(
        $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
        $8::timestamptz[], $9::timestamptz[], $10::int8[], $11::int8[], $12::int8[], $13::int8[],
        $14::int8[], $15::text[], $16::int4[], $17::text[], $18::text[],
        $19::int8[], $20::text[], $21::int8[], $22::text[], $23::uuid[], $24::int8[],
        $25::jsonb[], $26::uuid[], $27::text[], $28::int8[]
    )
    ON CONFLICT DO NOTHING
    RETURNING request_id
"""
_POSTED = "SELECT * FROM usage_records WHERE request_id = ANY($1::uuid[])"
_ADD_VOIDS = """
    INSERT INTO usage_voids (request_id, tenant_id, reason)
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[])
    ON CONFLICT DO NOTHING
    RETURNING request_id, tenant_id, reason
"""
_CHARGES_OF = (
    TRANSFER_ROWS
    + "WHERE t.request_id = ANY($1::uuid[]) AND t.kind = 'charge' ORDER BY t.transfer_id, p.line"
)
_VOIDED = """
    SELECT v.request_id, u.tenant_id, v.reason, u.lease_id
    FROM usage_voids AS v
    JOIN usage_records AS u USING (request_id)
    WHERE v.request_id = ANY($1::uuid[])
"""


async def lock_posting(connection: Connection, *, alone: bool) -> None:
    """Until the transaction ends keep out whoever is `alone`, or everybody to be alone."""
    lock = "pg_advisory_xact_lock" if alone else "pg_advisory_xact_lock_shared"
    await connection.execute(f"SELECT {lock}({_LOCK})")


class Ledger:
    """Where usage and the journal are kept."""

    def __init__(self, database: Database, journal: Journal, prices: Prices) -> None:
        self._database = database
        self._journal = journal
        self._prices = prices
        self._currencies: dict[str, str] = {}

    @contextlib.asynccontextmanager
    async def posting(self, *, with_voids: bool) -> AsyncIterator[LedgerTransaction]:
        """Begin a transaction; one with voids waits until it runs beside no other."""
        async with self._database.transaction() as connection:
            await lock_posting(connection, alone=with_voids)
            yield LedgerTransaction(connection, self._journal, self._prices, self._currencies)


class LedgerTransaction:
    """One posting."""

    def __init__(
        self,
        connection: Connection,
        journal: Journal,
        prices: Prices,
        currencies: dict[str, str],
    ) -> None:
        self._connection = connection
        self._journal = journal
        self._prices = prices
        self._currencies = currencies

    async def price_books(self) -> PriceBooks:
        """Every version."""
        return await self._prices.current(self._connection)

    async def tenant_currencies(self, tenant_ids: Collection[str]) -> Mapping[str, str]:
        """Currency of each tenant that exists; it never changes, so it is asked for once."""
        unknown = [tenant_id for tenant_id in tenant_ids if tenant_id not in self._currencies]
        if unknown:
            rows = await self._connection.fetch(
                "SELECT tenant_id, currency FROM tenants WHERE tenant_id = ANY($1::text[])",
                # A NUL cannot be in a text column, nor be asked for.
                [tenant_id for tenant_id in unknown if "\x00" not in tenant_id],
            )
            if len(self._currencies) > _TENANTS_KNOWN_MAX:
                self._currencies.clear()
            self._currencies.update((row["tenant_id"], row["currency"]) for row in rows)
        return self._currencies

    async def lock_used(self, meters: Collection[Meter]) -> dict[Meter, int]:
        """What was used before; nobody else reads or changes it until this transaction ends."""
        return await metering.lock_used(self._connection, meters)

    async def add_used(self, consumed: Mapping[Meter, int]) -> None:
        """Add to what was used; the meters are locked."""
        await metering.add_used(self._connection, consumed)

    async def give_back_used(self, request_ids: Collection[UUID]) -> None:
        """Take what these records had added out of what was used."""
        await metering.give_back_used(self._connection, request_ids)

    async def posted(self, request_ids: Collection[UUID]) -> Mapping[UUID, UsageRecord]:
        """What the inbox has of these requests."""
        rows = await self._connection.fetch(_POSTED, list(request_ids))
        return {row["request_id"]: read_record(row) for row in rows}

    async def add_records(self, rated: Sequence[RatedRecord]) -> set[UUID]:
        """Put records into the inbox; returns the request ids that were not there yet."""
        if not rated:
            return set()
        rows = await self._connection.fetch(_ADD_RECORDS, *_record_columns(rated))
        return {row["request_id"] for row in rows}

    async def add_voids(self, voids: Sequence[UsageVoid]) -> set[UUID]:
        """Put voids into the inbox, vouched for; returns the request ids that had none yet."""
        rows = await self._connection.fetch(
            _ADD_VOIDS,
            [void.request_id for void in voids],
            [void.tenant_id for void in voids],
            [void.reason for void in voids],
        )
        says = {void_subject(row["request_id"]): void_says(*row[1:]) for row in rows}
        await self._journal.warrants.add(self._connection, says)
        return {row["request_id"] for row in rows}

    async def add_transfers(self, transfers: Sequence[Transfer]) -> None:
        """Append to the journal."""
        await self._journal.append(self._connection, transfers)

    async def leases(self, lease_ids: Collection[UUID]) -> Mapping[UUID, Lease]:
        """Those of these leases that are not closed, kept from changing until the end."""
        return await lock_leases(self._connection, lease_ids)

    async def available(self, tenant_ids: Collection[str]) -> Mapping[str, int]:
        """The balances of these tenants outside of leases, kept from shrinking until the end."""
        balances = await lock_balances(self._connection, tenant_ids)
        return {tenant_id: one.balance_nanos for tenant_id, one in balances.items()}

    async def spend(self, spent: Mapping[UUID, int]) -> None:
        """Count charges against leases, or less than nothing for voids; renews them."""
        await spend_leases(self._connection, spent)

    async def refunds_of(self, request_ids: Collection[UUID]) -> Sequence[Transfer]:
        """Refunds of these requests that nobody corrected."""
        return await promotions.refunds_of(self._connection, request_ids)

    async def noted(self, request_ids: Collection[UUID]) -> Mapping[UUID, str]:
        """Of these requests, those whose statement has credit notes, and its number."""
        return await noted_statements(self._connection, request_ids)

    async def given_back(self, number: str) -> GivenBack:
        """What came back of the charges on a statement; nobody adds to it until the end, as credit
        notes and refunds keep out of postings with voids."""
        return await given_back_of(self._connection, number)

    async def lock_credits(self, tenant_ids: Collection[str]) -> Sequence[Credit]:
        """Credits with something left, first to expire first, kept from changing until the end."""
        return await promotions.lock_credits(self._connection, tenant_ids)

    async def credit_spent(
        self, request_ids: Collection[UUID]
    ) -> Mapping[UUID, Sequence[tuple[UUID, int]]]:
        """What the charges of these requests still have from credits, in the order of spending."""
        return await promotions.credit_spent(self._connection, request_ids)

    async def credit_returned(self, request_ids: Collection[UUID]) -> Mapping[UUID, int]:
        """What came back already of the credit that the charges of these requests spent."""
        return await promotions.credit_returned(self._connection, request_ids)

    async def add_spending(self, spending: Sequence[Spending]) -> None:
        """What was spent of credits, or came back."""
        await promotions.add_spending(self._connection, spending)

    async def voided(self, request_ids: Collection[UUID]) -> Sequence[Voided]:
        """Of these requests, those of which both a record and a void are there."""
        if not request_ids:
            return []
        rows = await self._connection.fetch(_VOIDED, list(request_ids))
        return [Voided(**row) for row in rows]

    async def charges_of(self, request_ids: Collection[UUID]) -> Sequence[Transfer]:
        """The charges of these requests."""
        rows = await self._connection.fetch(_CHARGES_OF, list(request_ids))
        return [one.transfer for one in read_transfers(rows)]


def _record_columns(rated: Sequence[RatedRecord]) -> list[list[object]]:
    """The columns of _ADD_RECORDS."""
    rows = [
        (
            record.request_id,
            record.tenant_id,
            record.key_id,
            record.deployment,
            record.price_class,
            record.api,
            record.outcome,
            from_unix_ns(record.admitted_unix_ns),
            from_unix_ns(record.finished_unix_ns),
            record.input_tokens,
            record.output_tokens,
            record.request_bytes,
            record.response_bytes,
            record.compute_us,
            record.node,
            record.attempt,
            record.gateway_id,
            trace_id_of(record.traceparent),
            rating.price_version,
            rating.rated_class,
            rating.charge_nanos,
            rating.currency,
            one.transfer_id,
            record.cached_tokens,
            metering.consumed_column(one),
            record.lease_id,
            record.project_id,
            record.stream_sequence,
        )
        for one in rated
        for record, rating in ((one.record, one.rating),)
    ]
    return [list(column) for column in zip(*rows, strict=True)]


def trace_id_of(traceparent: str) -> str:
    """The 32 hex digits of a W3C traceparent's trace id; "" when there is none."""
    context = parse_traceparent(traceparent) if traceparent else None
    return f"{context.trace_id:032x}" if context else ""
