"""The transactions in which people, or time, change what tenants have."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from uuid import UUID

from busbar_billing.adapters.postgres import promotions
from busbar_billing.adapters.postgres.database import Connection, Database
from busbar_billing.adapters.postgres.giving_back import given_back_beside, lock_giving_back
from busbar_billing.adapters.postgres.journal import (
    TRANSFER_ROWS,
    Journal,
    posted_before,
    read_transfers,
)
from busbar_billing.adapters.postgres.outbox import put_notices
from busbar_billing.adapters.postgres.posting import lock_posting
from busbar_billing.adapters.postgres.prices import from_unix_ns
from busbar_billing.domain.ledger import Transfer
from busbar_billing.domain.promotions import Credit, Spending
from busbar_billing.domain.webhooks import notices_of
from busbar_billing.usecases.adjustments import ChargeState, EndingCredit
from busbar_billing.usecases.tenants import PostedTransfer

_LOCK_KEY = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"
_BY_ID = TRANSFER_ROWS + "WHERE t.transfer_id = $1 ORDER BY p.line"
_CHARGE = """
    SELECT
        u.currency, u.amount_nanos, u.transfer_id,
        EXISTS (SELECT FROM usage_voids AS v WHERE v.request_id = u.request_id) AS voided,
        (
            SELECT coalesce(-sum(p.amount_nanos), 0)::bigint
            FROM transfers AS t
            INNER JOIN postings AS p USING (transfer_id)
            INNER JOIN accounts AS a USING (account_id)
            WHERE t.request_id = u.request_id AND t.kind IN ('refund', 'correction')
            AND a.kind = 'revenue'
        ) AS refunded_nanos,
        (
            SELECT coalesce(sum(s.amount_nanos), 0)::bigint
            FROM promotional_spending AS s
            WHERE s.request_id = u.request_id AND s.transfer_id = u.transfer_id
        ) AS credit_first_nanos
    FROM usage_records AS u
    WHERE u.request_id = $1
"""
_ADD_CREDIT = """
    INSERT INTO promotional_credits (credit_id, tenant_id, currency, amount_nanos, expires_at)
    VALUES ($1, $2, $3, $4, $5)
"""
_ENDING = """
    SELECT c.credit_id, c.tenant_id, c.currency, w.reason AS withdrawn_for
    FROM promotional_credits AS c
    INNER JOIN promotional_unspent AS u USING (credit_id)
    LEFT JOIN promotional_withdrawals AS w USING (credit_id)
"""
_EXPIRED = f"""
    {_ENDING}
    WHERE u.unspent_nanos > 0 AND u.expires_at <= $1 AND u.credit_id > $2
    ORDER BY u.credit_id
    LIMIT 1
"""
# As it was when the transfer was posted: asked again later it is the same.
_GIVEN_TO_ENDED = """
    SELECT coalesce(-sum(s.amount_nanos), 0)::bigint
    FROM promotional_spending AS s
    INNER JOIN promotional_unspent AS u USING (credit_id)
    INNER JOIN transfers AS t USING (transfer_id)
    WHERE s.transfer_id = $1 AND u.expires_at <= t.posted_at
"""
_ADD_WITHDRAWAL = """
    INSERT INTO promotional_withdrawals (credit_id, tenant_id, reason) VALUES ($1, $2, $3)
"""


class Adjustments:
    """Where the journal is kept."""

    def __init__(self, database: Database, journal: Journal) -> None:
        self._database = database
        self._journal = journal

    @contextlib.asynccontextmanager
    async def adjusting(self) -> AsyncIterator[AdjustmentRows]:
        """Begin a transaction; it runs beside no posting that takes charges back."""
        async with self._database.transaction() as connection:
            await lock_posting(connection, alone=False)
            yield AdjustmentRows(connection, self._journal)


class AdjustmentRows:
    """One transaction."""

    def __init__(self, connection: Connection, journal: Journal) -> None:
        self._connection = connection
        self._journal = journal

    async def lock_key(self, key: str) -> None:
        """Wait for whoever does something under the same idempotency key."""
        await self._connection.execute(_LOCK_KEY, key)

    async def posted(self, key: str) -> PostedTransfer | None:
        """What was posted under an idempotency key, and whether it was undone since."""
        return await posted_before(self._connection, key)

    async def transfer(self, transfer_id: UUID) -> Transfer | None:
        """A posted transfer."""
        rows = await self._connection.fetch(_BY_ID, transfer_id)
        return read_transfers(rows)[0].transfer if rows else None

    async def charge_of(self, request_id: UUID) -> ChargeState | None:
        """The charge of a request, kept from changing until the end."""
        await self._connection.execute(_LOCK_KEY, f"charge:{request_id}")
        row = await self._connection.fetchrow(_CHARGE, request_id)
        if row is None:
            return None
        charge = await self.transfer(row["transfer_id"])
        spent = await promotions.credit_spent(self._connection, [request_id])
        assert charge is not None
        return ChargeState(
            charge=charge,
            currency=row["currency"],
            amount_nanos=row["amount_nanos"],
            voided=row["voided"],
            refunded_nanos=row["refunded_nanos"],
            credit_spent=spent.get(request_id, []),
            credit_first_nanos=row["credit_first_nanos"],
        )

    async def left_on_statement(self, charge: Transfer) -> int | None:
        """What may still be given back of the statement that a charge is on, which nobody else
        changes until the end; None while it is on none, or on one without a credit note."""
        assert charge.tenant_id is not None
        assert charge.request_id is not None
        await lock_giving_back(self._connection, charge.tenant_id)
        given = await given_back_beside(self._connection, charge.request_id)
        return given.left_nanos if given is not None and given.noted_nanos else None

    async def post(self, transfer: Transfer) -> PostedTransfer:
        """Append to the journal."""
        await self._journal.append(self._connection, [transfer])
        await put_notices(self._connection, notices_of([transfer]))
        rows = await self._connection.fetch(_BY_ID, transfer.transfer_id)
        return read_transfers(rows)[0]

    async def lock_available(self, tenant_id: str, currency: str) -> int:
        """What the tenant has outside of leases, kept from changing until the end."""
        held = await self._connection.fetchval("SELECT lock_available($1, $2)", tenant_id, currency)
        return int(held or 0)

    async def lock_credits(self, tenant_ids: Collection[str]) -> Sequence[Credit]:
        """Credits with something left, first to expire first, kept from changing until the end."""
        return await promotions.lock_credits(self._connection, tenant_ids)

    async def add_credit(self, credit: Credit, currency: str, expires_unix_ns: int) -> None:
        """A credit that was given."""
        await self._connection.execute(
            _ADD_CREDIT,
            credit.credit_id,
            credit.tenant_id,
            currency,
            credit.unspent_nanos,
            from_unix_ns(expires_unix_ns),
        )

    async def add_spending(self, spending: Sequence[Spending]) -> None:
        """What was spent of credits, or came back."""
        await promotions.add_spending(self._connection, spending)

    async def given_to_ended_credit(self, transfer_id: UUID) -> int:
        """What a posted transfer gave back to credits that had ended before it, in nanos."""
        return await self._connection.fetchval(_GIVEN_TO_ENDED, transfer_id)

    async def expired_credit(self, now_unix_ns: int, after: UUID) -> EndingCredit | None:
        """The next expired or withdrawn credit that has something left."""
        row = await self._connection.fetchrow(_EXPIRED, from_unix_ns(now_unix_ns), after)
        return None if row is None else EndingCredit(**row)

    async def ending_credit(self, credit_id: UUID) -> EndingCredit | None:
        """A credit; None when there is none."""
        row = await self._connection.fetchrow(_ENDING + "WHERE c.credit_id = $1", credit_id)
        return None if row is None else EndingCredit(**row)

    async def add_withdrawal(self, ending: EndingCredit) -> None:
        """A credit that is withdrawn: from now on it has expired."""
        await self._connection.execute(
            _ADD_WITHDRAWAL, ending.credit_id, ending.tenant_id, ending.withdrawn_for
        )
