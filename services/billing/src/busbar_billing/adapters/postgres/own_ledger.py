"""The journal as one tenant sees it: what each transfer did to its own accounts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from uuid import UUID

import asyncpg

from busbar_billing.adapters.postgres.database import TenantView
from busbar_billing.domain.ledger import Account, AccountKind, Posting, TransferKind

# Row-level security leaves the tenant's own accounts of these, so postings need not sum to zero.
_ROWS = """
    SELECT
        t.transfer_id, t.kind, t.request_id, t.reason, t.posted_at,
        p.amount_nanos, p.currency, a.kind AS account_kind, a.tenant_id
    FROM transfers AS t
    INNER JOIN postings AS p USING (transfer_id)
    INNER JOIN accounts AS a USING (account_id)
"""
_OF_PAGE = """
    WHERE t.transfer_id IN (
        SELECT transfer_id FROM transfers
        WHERE tenant_id = $1 AND ($2::uuid IS NULL OR request_id = $2) AND transfer_id < $3
        ORDER BY transfer_id DESC
        LIMIT $4
    )
    ORDER BY t.transfer_id DESC, p.line
"""
# A payment that was entered wrongly is taken back by a correction of it.
_OF_PAYMENTS = """
    WHERE t.transfer_id IN (
        SELECT x.transfer_id FROM transfers AS x
        WHERE x.tenant_id = $1 AND x.transfer_id < $2
        AND x.kind IN ('top_up', 'payment_returned', 'correction')
        AND (
            x.kind <> 'correction'
            OR EXISTS (
                SELECT FROM transfers AS wrong
                WHERE wrong.tenant_id = $1 AND wrong.kind = 'top_up'
                AND x.idempotency_key = 'correction:' || wrong.transfer_id
            )
        )
        ORDER BY x.transfer_id DESC
        LIMIT $3
    )
    ORDER BY t.transfer_id DESC, p.line
"""
_PAGE = _ROWS + _OF_PAGE
_PAYMENTS = _ROWS + _OF_PAYMENTS


@dataclass(frozen=True, slots=True)
class OwnTransfer:
    """A transfer, with the postings on the tenant's own accounts."""

    transfer_id: UUID
    kind: TransferKind
    request_id: UUID | None
    reason: str
    posted_at: datetime
    postings: tuple[Posting, ...]

    @property
    def amount_nanos(self) -> int:
        """What it did to the tenant's balance."""
        return sum(posting.amount_nanos for posting in self.postings)


class OwnLedger:
    """Reads it, newest first."""

    def __init__(self, view: TenantView) -> None:
        self._view = view

    async def transfers(
        self, tenant_id: str, request_id: UUID | None, before: UUID, limit: int
    ) -> list[OwnTransfer]:
        """Transfers with an id below `before`; ids are ordered by posting."""
        async with self._view.connection() as connection:
            return _read(await connection.fetch(_PAGE, tenant_id, request_id, before, limit))

    async def payments(self, tenant_id: str, before: UUID, limit: int) -> list[OwnTransfer]:
        """Money paid in, given back, and entered wrongly."""
        async with self._view.connection() as connection:
            return _read(await connection.fetch(_PAYMENTS, tenant_id, before, limit))


def _read(rows: Iterable[asyncpg.Record]) -> list[OwnTransfer]:
    return [
        _read_transfer(list(lines)) for _, lines in groupby(rows, key=itemgetter("transfer_id"))
    ]


def _read_transfer(lines: list[asyncpg.Record]) -> OwnTransfer:
    head = lines[0]
    return OwnTransfer(
        transfer_id=head["transfer_id"],
        kind=TransferKind(head["kind"]),
        request_id=head["request_id"],
        reason=head["reason"],
        posted_at=head["posted_at"],
        postings=tuple(
            Posting(
                Account(AccountKind(line["account_kind"]), line["tenant_id"], line["currency"]),
                line["amount_nanos"],
            )
            for line in lines
        ),
    )
