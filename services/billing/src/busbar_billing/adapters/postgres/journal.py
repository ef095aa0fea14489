"""Transfers and postings, as rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import groupby
from operator import itemgetter

import asyncpg

from busbar_billing.adapters.postgres.database import Connection, Database
from busbar_billing.adapters.postgres.outbox import put_notices
from busbar_billing.adapters.postgres.warrants import Warrants
from busbar_billing.domain.ledger import Account, AccountKind, Posting, Transfer, TransferKind
from busbar_billing.domain.warrants import VOUCHED_KINDS, said_by, transfer_subject
from busbar_billing.domain.webhooks import notices_of
from busbar_billing.usecases.tenants import PostedTransfer

TRANSFER_ROWS = """
    SELECT
        t.transfer_id, t.kind, t.idempotency_key, t.tenant_id, t.request_id, t.reason, t.posted_at,
        p.amount_nanos, p.currency, a.kind AS account_kind, a.tenant_id AS account_tenant,
        a.site
    FROM transfers AS t
    JOIN postings AS p USING (transfer_id)
    JOIN accounts AS a USING (account_id)
"""

_ADD_TRANSFERS = """
    INSERT INTO transfers (transfer_id, kind, idempotency_key, tenant_id, request_id, reason)
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::uuid[], $6::text[])
"""
_ADD_POSTINGS = """
    INSERT INTO postings (transfer_id, line, account_id, currency, amount_nanos)
    SELECT * FROM unnest($1::uuid[], $2::int2[], $3::int8[], $4::text[], $5::int8[])
"""
_FIND_ACCOUNTS = """
    SELECT a.account_id, a.kind, a.tenant_id, a.currency, a.site
    FROM accounts AS a
    JOIN unnest($1::text[], $2::text[], $3::text[], $4::text[])
    AS wanted (kind, tenant_id, currency, site)
    ON a.kind = wanted.kind
    AND a.tenant_id IS NOT DISTINCT FROM wanted.tenant_id
    AND a.currency = wanted.currency
    AND a.site IS NOT DISTINCT FROM wanted.site
"""
_ADD_ACCOUNTS = """
    INSERT INTO accounts (kind, tenant_id, currency, site)
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
    ON CONFLICT DO NOTHING
    RETURNING account_id, kind, tenant_id, currency, site
"""
_UNDONE = """
    SELECT posted_at FROM transfers WHERE idempotency_key = 'correction:' || $1::uuid
    UNION ALL
    SELECT withdrawn_at FROM promotional_withdrawals WHERE credit_id = $1::uuid
"""
_BY_KEY = f"{TRANSFER_ROWS} WHERE t.idempotency_key = $1 ORDER BY p.line"
_ACCOUNTS_KNOWN_MAX = 100_000


class Journal:
    """Appends to the journal; remembers the ids of accounts, which never change."""

    def __init__(self, database: Database, warrants: Warrants) -> None:
        self._database = database
        self.warrants = warrants
        self._known: dict[Account, int] = {}

    async def post_once(self, transfer: Transfer) -> PostedTransfer:
        """Post, or return what was posted under the same idempotency key."""
        async with self._database.transaction() as connection:
            await lock_key(connection, transfer.idempotency_key)
            before = await posted_before(connection, transfer.idempotency_key)
            if before is not None:
                return before
            await self.append(connection, [transfer])
            await put_notices(connection, notices_of([transfer]))
            rows = await connection.fetch(_BY_KEY, transfer.idempotency_key)
            return read_transfers(rows)[0]

    async def append(self, connection: Connection, transfers: Sequence[Transfer]) -> None:
        """Append transfers, none of which is there yet, inside the caller's transaction."""
        if not transfers:
            return
        accounts = await self._account_ids(
            connection, {account for one in transfers for account, _ in one.postings}
        )
        await connection.execute(
            _ADD_TRANSFERS,
            [one.transfer_id for one in transfers],
            [one.kind for one in transfers],
            [one.idempotency_key for one in transfers],
            [one.tenant_id for one in transfers],
            [one.request_id for one in transfers],
            [one.reason for one in transfers],
        )
        lines = [
            (one.transfer_id, number, accounts[account], account.currency, amount_nanos)
            for one in transfers
            for number, (account, amount_nanos) in enumerate(one.postings)
        ]
        await connection.execute(
            _ADD_POSTINGS, *[list(column) for column in zip(*lines, strict=True)]
        )
        vouched = [one for one in transfers if one.kind in VOUCHED_KINDS]
        says = {transfer_subject(one.transfer_id): said_by(one) for one in vouched}
        await self.warrants.add(connection, says)

    async def _account_ids(
        self, connection: Connection, accounts: Collection[Account]
    ) -> dict[Account, int]:
        found = {account: self._known[account] for account in accounts if account in self._known}
        missing = [account for account in accounts if account not in found]
        if not missing:
            return found
        stored = _read_accounts(await connection.fetch(_FIND_ACCOUNTS, *_columns(missing)))
        if len(self._known) + len(stored) > _ACCOUNTS_KNOWN_MAX:
            self._known.clear()
        self._known.update(stored)
        found.update(stored)
        # Accounts made here are remembered when next read: this transaction may yet fail.
        while new := [account for account in missing if account not in found]:
            found.update(_read_accounts(await connection.fetch(_ADD_ACCOUNTS, *_columns(new))))
            found.update(_read_accounts(await connection.fetch(_FIND_ACCOUNTS, *_columns(new))))
        return found


async def lock_key(connection: Connection, key: str) -> None:
    """Until the transaction ends the same key at the same moment waits, then finds the first."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", key)


async def posted_before(connection: Connection, key: str) -> PostedTransfer | None:
    """What was posted under an idempotency key, and whether it was undone since."""
    rows = await connection.fetch(_BY_KEY, key)
    if not rows:
        return None
    [found] = read_transfers(rows, repeated=True)
    return replace(found, undone_at=await connection.fetchval(_UNDONE, found.transfer.transfer_id))


async def open_accounts(connection: Connection, accounts: Collection[Account]) -> None:
    """Make accounts that are not there yet, inside the caller's transaction."""
    await connection.fetch(_ADD_ACCOUNTS, *_columns(list(accounts)))


def read_transfers(
    rows: Iterable[asyncpg.Record], *, repeated: bool = False
) -> list[PostedTransfer]:
    """Put together the rows of TRANSFER_ROWS, which must be ordered by transfer."""
    transfers: list[PostedTransfer] = []
    for _, lines in groupby(rows, key=itemgetter("transfer_id")):
        transfers.append(_read_transfer(list(lines), repeated=repeated))
    return transfers


def _read_transfer(lines: list[asyncpg.Record], *, repeated: bool) -> PostedTransfer:
    head = lines[0]
    posted_at: datetime = head["posted_at"]
    transfer = Transfer(
        transfer_id=head["transfer_id"],
        kind=TransferKind(head["kind"]),
        idempotency_key=head["idempotency_key"],
        postings=tuple(
            Posting(
                Account(
                    AccountKind(line["account_kind"]),
                    line["account_tenant"],
                    line["currency"],
                    line["site"],
                ),
                line["amount_nanos"],
            )
            for line in lines
        ),
        tenant_id=head["tenant_id"],
        request_id=head["request_id"],
        reason=head["reason"],
    )
    return PostedTransfer(transfer, posted_at, repeated)


def _columns(
    accounts: Sequence[Account],
) -> tuple[list[str], list[str | None], list[str], list[str | None]]:
    return (
        [account.kind.value for account in accounts],
        [account.tenant_id for account in accounts],
        [account.currency for account in accounts],
        [account.site for account in accounts],
    )


def _read_accounts(rows: Iterable[asyncpg.Record]) -> dict[Account, int]:
    return {
        Account(AccountKind(row["kind"]), row["tenant_id"], row["currency"], row["site"]): row[
            "account_id"
        ]
        for row in rows
    }
