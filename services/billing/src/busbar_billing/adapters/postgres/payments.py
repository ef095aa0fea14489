"""The provider's events and what follows from them, as rows."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from busbar_billing.adapters.postgres.database import Connection, Database
from busbar_billing.adapters.postgres.journal import Journal, lock_key
from busbar_billing.adapters.postgres.leases import lock_balances
from busbar_billing.adapters.postgres.outbox import put_notices
from busbar_billing.domain.ledger import Transfer
from busbar_billing.domain.names import is_tenant_id
from busbar_billing.domain.payments import Payment
from busbar_billing.domain.webhooks import notices_of
from busbar_billing.usecases.payments import ProviderEvent

_STORE = """
    INSERT INTO provider_events (event_id, type, payload) VALUES ($1, $2, $3::jsonb)
    ON CONFLICT DO NOTHING RETURNING event_id
"""
_OPEN = "INSERT INTO payments (reference, currency) VALUES ($1, $2) ON CONFLICT DO NOTHING"
_LOCK = "SELECT * FROM payments WHERE reference = $1 FOR UPDATE"
_SAVE = """
    UPDATE payments SET tenant_id = nullif($2, ''), paid_nanos = $3, refunded_nanos = $4,
    lost_nanos = $5, posted_paid_nanos = $6, posted_returned_nanos = $7, changed_at = now()
    WHERE reference = $1
"""
_POSTED = "SELECT EXISTS (SELECT FROM transfers WHERE idempotency_key = $1)"
_EVENTS = """
    SELECT event_id, type, outcome, received_at FROM provider_events
    WHERE ($1::timestamptz IS NULL OR (received_at, event_id) < ($1, $2))
    ORDER BY received_at DESC, event_id DESC LIMIT $3
"""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as operators see it."""

    event_id: str
    type: str
    outcome: str
    received_at: datetime


class Payments:
    """Where events and payments are kept."""

    def __init__(self, database: Database, journal: Journal) -> None:
        self._database = database
        self._journal = journal

    @contextlib.asynccontextmanager
    async def taking(self) -> AsyncIterator[PaymentRows]:
        """Begin a transaction."""
        async with self._database.transaction() as connection:
            yield PaymentRows(connection, self._journal)

    async def events(
        self, limit: int, before: datetime | None, before_id: str
    ) -> list[StoredEvent]:
        """Events, newest first."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_EVENTS, before, before_id, limit)
            return [StoredEvent(*row) for row in rows]


class PaymentRows:
    """One transaction."""

    def __init__(self, connection: Connection, journal: Journal) -> None:
        self._connection = connection
        self._journal = journal

    async def is_new(self, event: ProviderEvent) -> bool:
        """Store the event; False when it was stored before."""
        stored = await self._connection.fetchval(
            _STORE, event.event_id, event.type, event.payload.decode()
        )
        return stored is not None

    async def conclude(self, event_id: str, outcome: str) -> None:
        """Say what became of the event."""
        query = "UPDATE provider_events SET outcome = $2 WHERE event_id = $1"
        await self._connection.execute(query, event_id, outcome)

    async def payment(self, told: Payment) -> Payment:
        """What is known of the same payment, locked; a new one when nothing is."""
        await self._connection.execute(_OPEN, told.reference, told.currency)
        row = await self._connection.fetchrow(_LOCK, told.reference)
        assert row is not None
        return read_payment(row)

    async def currency_of(self, tenant_id: str) -> str | None:
        """The tenant's currency; None when there is no such tenant."""
        if not is_tenant_id(tenant_id):
            return None
        query = "SELECT currency FROM tenants WHERE tenant_id = $1"
        return await self._connection.fetchval(query, tenant_id)

    async def available(self, tenant_id: str) -> int:
        """The tenant's balance outside of leases, locked."""
        standing = (await lock_balances(self._connection, [tenant_id])).get(tenant_id)
        return standing.balance_nanos if standing is not None else 0

    async def is_posted(self, idempotency_key: str) -> bool:
        """Whether the journal has a transfer under this key, which nobody else posts until the
        end."""
        await lock_key(self._connection, idempotency_key)
        return bool(await self._connection.fetchval(_POSTED, idempotency_key))

    async def save(self, payment: Payment, transfers: list[Transfer]) -> None:
        """Keep the payment as it is now and post the transfers."""
        await self._connection.execute(
            _SAVE,
            payment.reference,
            payment.tenant_id,
            payment.paid_nanos,
            payment.refunded_nanos,
            payment.lost_nanos,
            payment.posted_paid_nanos,
            payment.posted_returned_nanos,
        )
        await self._journal.append(self._connection, transfers)
        await put_notices(self._connection, notices_of(transfers))


def read_payment(row: asyncpg.Record) -> Payment:
    """A row of payments."""
    return Payment(
        reference=row["reference"],
        currency=row["currency"],
        tenant_id=row["tenant_id"] or "",
        paid_nanos=row["paid_nanos"],
        refunded_nanos=row["refunded_nanos"],
        lost_nanos=row["lost_nanos"],
        posted_paid_nanos=row["posted_paid_nanos"],
        posted_returned_nanos=row["posted_returned_nanos"],
    )
