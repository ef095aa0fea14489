"""The journal and the inbox as the auditor reads them: piece by piece, each at one moment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from uuid import UUID

import asyncpg

from busbar_billing.adapters.postgres.database import Connection, Database
from busbar_billing.adapters.postgres.metering import read_before
from busbar_billing.adapters.postgres.prices import Prices, to_unix_ns
from busbar_billing.adapters.postgres.reading import read_record
from busbar_billing.adapters.postgres.warrants import DATED_SINCE, SINCE, VOIDS_SINCE
from busbar_billing.domain.audit.journal import (
    InboxRow,
    PostingRow,
    RecordRow,
    Related,
    TransferRow,
)
from busbar_billing.domain.ledger import TransferKind
from busbar_billing.domain.prices import PriceBooks
from busbar_billing.domain.warrants import (
    VOUCHED_KINDS,
    is_vouched,
    transfer_says,
    transfer_subject,
    void_says,
    void_subject,
)
from busbar_billing.usecases.audit import InboxPiece, JournalPiece

_TRANSFERS = f"""
    SELECT
        t.transfer_id, t.kind, t.idempotency_key, t.tenant_id, t.request_id, t.reason,
        t.posted_at, uuid_extract_timestamp(t.transfer_id) >= {DATED_SINCE} AS dated,
        v.tenant_id AS void_tenant, v.reason AS void_reason, w.digest AS warrant,
        CASE
            WHEN t.kind = ANY($4::text[]) THEN t.posted_at >= {SINCE}
            WHEN t.kind = 'void' THEN v.received_at >= {VOIDS_SINCE}
        END AS to_be_vouched
    FROM transfers AS t
    LEFT JOIN usage_voids AS v ON v.request_id = CASE WHEN t.kind = 'void' THEN t.request_id END
    LEFT JOIN warrants AS w ON w.subject = CASE
        WHEN t.kind = ANY($4::text[]) THEN 'transfer ' || t.transfer_id
        WHEN t.kind = 'void' THEN 'void ' || t.request_id
    END
    WHERE t.transfer_id > $1 AND t.transfer_id <= $2
    ORDER BY t.transfer_id LIMIT $3
"""  # noqa: S608
_KINDS = sorted(VOUCHED_KINDS)
_POSTING_COLUMNS = """
    SELECT
        p.transfer_id, p.account_id, p.currency, p.amount_nanos,
        a.kind, a.tenant_id, a.currency AS account_currency
    FROM postings AS p
    LEFT JOIN accounts AS a ON a.account_id = p.account_id
"""
_POSTINGS = _POSTING_COLUMNS + "WHERE p.transfer_id > $1 AND p.transfer_id <= $2"
_RECORDS = "SELECT * FROM usage_records WHERE request_id = ANY($1::uuid[])"
_VOIDS = "SELECT request_id FROM usage_voids WHERE request_id = ANY($1::uuid[])"
_CHARGES = """
    SELECT transfer_id, kind, idempotency_key, tenant_id, request_id, posted_at
    FROM transfers WHERE request_id = ANY($1::uuid[]) AND kind = 'charge'
"""
_POSTINGS_OF = _POSTING_COLUMNS + "WHERE p.transfer_id = ANY($1::uuid[])"
_INBOX = """
    WITH piece AS (
        SELECT request_id, transfer_id FROM usage_records
        WHERE request_id > $1 ORDER BY request_id LIMIT $2
    )
    SELECT
        u.request_id, u.transfer_id, c.transfer_id IS NOT NULL AS charged,
        w.request_id IS NOT NULL AS void_wanted,
        EXISTS (
            SELECT FROM transfers AS v WHERE v.request_id = u.request_id AND v.kind = 'void'
        ) AS voided
    FROM piece AS u
    LEFT JOIN transfers AS c
    ON c.transfer_id = u.transfer_id AND c.request_id = u.request_id AND c.kind = 'charge'
    LEFT JOIN usage_voids AS w ON w.request_id = u.request_id
    ORDER BY u.request_id
"""
_ROWS = """
    SELECT coalesce(sum(greatest(reltuples, 0)), 0)::bigint FROM pg_class
    WHERE oid IN ('transfers'::regclass, 'usage_records'::regclass)
"""


class AuditedJournal:
    """Reads pieces in the order of their ids."""

    def __init__(self, database: Database, prices: Prices, warrant_key: bytes) -> None:
        self._database = database
        self._prices = prices
        self._warrant_key = warrant_key

    async def rows(self) -> int:
        """About how many transfers and records there are."""
        async with self._database.as_auditor() as connection:
            return int(await connection.fetchval(_ROWS))

    async def journal(self, after: UUID, upto: UUID, limit: int) -> JournalPiece:
        """The next `limit` transfers with their postings, and what they are about."""
        async with self._database.as_auditor() as connection:
            heads = await connection.fetch(_TRANSFERS, after, upto, limit, _KINDS)
            whole = len(heads) < limit
            last = upto if whole else heads[-1]["transfer_id"]
            lines = await connection.fetch(_POSTINGS, after, last)
            transfers = self._vouched(heads, _join(heads, lines))
            related = await _related(connection, transfers)
            books = await self._prices.current(connection) if related.records else PriceBooks([])
        return JournalPiece(transfers, related, books, None if whole else last)

    def _vouched(
        self, heads: Sequence[asyncpg.Record], transfers: list[TransferRow]
    ) -> list[TransferRow]:
        """The transfers, and whether billing vouched for those that it has to."""
        wanted = {head["transfer_id"]: head for head in heads if head["to_be_vouched"]}
        return [
            replace(one, vouched=self._is_vouched(one, wanted[one.transfer_id]))
            if one.transfer_id in wanted
            else one
            for one in transfers
        ]

    def _is_vouched(self, transfer: TransferRow, head: asyncpg.Record) -> bool:
        if head["kind"] == TransferKind.VOID:
            says = void_says(head["void_tenant"], head["void_reason"])
            subject = void_subject(transfer.request_id)
            return is_vouched(self._warrant_key, subject, says, head["warrant"])
        says = transfer_says(
            kind=head["kind"],
            idempotency_key=transfer.idempotency_key,
            tenant_id=transfer.tenant_id,
            request_id=transfer.request_id,
            reason=head["reason"],
            lines=(
                (line.account_kind, line.account_tenant, line.currency, line.amount_nanos)
                for line in transfer.postings
            ),
        )
        subject = transfer_subject(transfer.transfer_id)
        return is_vouched(self._warrant_key, subject, says, head["warrant"])

    async def inbox(self, after: UUID, limit: int) -> InboxPiece:
        """The next `limit` records, and whether they are charged."""
        async with self._database.as_auditor() as connection:
            rows = await connection.fetch(_INBOX, after, limit)
        found = [
            InboxRow(
                request_id=row["request_id"],
                transfer_id=row["transfer_id"],
                charged=row["charged"],
                void_wanted=row["void_wanted"],
                voided=row["voided"],
            )
            for row in rows
        ]
        return InboxPiece(found, found[-1].request_id if len(found) == limit else None)


async def _related(connection: Connection, transfers: Sequence[TransferRow]) -> Related:
    charged, voided = (
        _requests(transfers, TransferKind.CHARGE),
        _requests(transfers, TransferKind.VOID),
    )
    records: dict[UUID, RecordRow] = {}
    if charged:
        for row in await connection.fetch(_RECORDS, charged):
            records[row["request_id"]] = _record(row)
    if not voided:
        return Related(records)
    heads = await connection.fetch(_CHARGES, voided)
    lines = await connection.fetch(_POSTINGS_OF, [head["transfer_id"] for head in heads])
    charges: defaultdict[UUID, list[TransferRow]] = defaultdict(list)
    for one in _join(heads, lines):
        if one.request_id is not None:
            charges[one.request_id].append(one)
    wanted = await connection.fetch(_VOIDS, voided)
    return Related(records, charges, frozenset(row["request_id"] for row in wanted))


def _requests(transfers: Iterable[TransferRow], kind: TransferKind) -> list[UUID]:
    return [one.request_id for one in transfers if one.kind == kind and one.request_id is not None]


def _join(heads: Iterable[asyncpg.Record], lines: Iterable[asyncpg.Record]) -> list[TransferRow]:
    """Transfers with their postings, and postings without a transfer as one without a kind."""
    postings: defaultdict[UUID, list[PostingRow]] = defaultdict(list)
    for line in lines:
        postings[line["transfer_id"]].append(_posting(line))
    found = [
        TransferRow(
            head["transfer_id"],
            head["kind"],
            head["idempotency_key"],
            head["tenant_id"],
            head["request_id"],
            postings.pop(head["transfer_id"], []),
            posted_unix_ns=to_unix_ns(head["posted_at"]),
            dated=bool(head.get("dated")),
        )
        for head in heads
    ]
    stray = [TransferRow(one, None, "", None, None, rows) for one, rows in postings.items()]
    return [*found, *stray]


def _posting(line: asyncpg.Record) -> PostingRow:
    return PostingRow(
        account_id=line["account_id"],
        currency=line["currency"],
        amount_nanos=line["amount_nanos"],
        account_kind=line["kind"],
        account_tenant=line["tenant_id"],
        account_currency=line["account_currency"],
    )


def _record(row: asyncpg.Record) -> RecordRow:
    return RecordRow(
        record=read_record(row),
        price_version=row["price_version"],
        rated_class=row["rated_class"],
        before=read_before(row["consumed"]),
        amount_nanos=row["amount_nanos"],
        currency=row["currency"],
        transfer_id=row["transfer_id"],
        posted_unix_ns=to_unix_ns(row["posted_at"]),
    )
