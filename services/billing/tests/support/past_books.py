"""A tenant with a past, whose months are closed by hand."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg
from billing_parts import WARRANTS
from busbar_billing.adapters.postgres.database import Database as Pool
from busbar_billing.adapters.postgres.journal import Journal
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.adapters.postgres.statements import Statements
from busbar_billing.domain.statements import checked_month
from busbar_billing.usecases.statements import Issued, close_month
from uuid_utils.compat import uuid7


class NothingWaits:
    """All usage is posted."""

    async def require_posted(self) -> None:
        """Return at once."""


@dataclass
class Books:
    """A tenant with a past, written by the database's owner."""

    tenant_id: str
    owner: asyncpg.Connection
    pool: Pool
    statements: Statements

    async def move(
        self,
        kind: str,
        amount_nanos: int,
        at: datetime,
        reason: str = "",
        *,
        against: str = "revenue",
    ) -> UUID:
        """A transfer between the tenant and us."""
        return await self.post(kind, amount_nanos, at, None, reason, against=against)

    async def post(
        self,
        kind: str,
        amount_nanos: int,
        at: datetime,
        request_id: UUID | None,
        reason: str = "",
        *,
        against: str = "revenue",
    ) -> UUID:
        """A transfer posted at a moment, against an account of ours."""
        transfer_id = UUID(int=(int(at.timestamp() * 1000) << 80) | uuid4().int & (2**62 - 1))
        async with self.owner.transaction():
            await self.owner.execute(
                "INSERT INTO transfers (transfer_id, kind, idempotency_key, tenant_id, request_id,"
                " reason, posted_at) VALUES ($1, $2, $3, $4, $5, $6, $7)",
                transfer_id, kind, f"test:{transfer_id}", self.tenant_id, request_id, reason, at,
            )  # fmt: skip
            await self.owner.execute(
                "INSERT INTO postings SELECT $1::uuid, v.line, a.account_id, 'USD', v.amount FROM"
                " (VALUES (0, 'tenant_available', $2::text, $3::int8), (1, $4, NULL, -$3))"
                " AS v (line, kind, tenant_id, amount) JOIN accounts AS a ON a.kind = v.kind"
                " AND a.currency = 'USD' AND a.tenant_id IS NOT DISTINCT FROM v.tenant_id",
                transfer_id, self.tenant_id, amount_nanos, against,
            )  # fmt: skip
        return transfer_id

    async def charge(self, admitted: datetime, posted: datetime, tokens: int = 1_000) -> UUID:
        """A request of the class chat-small: 100 nanos for an input token."""
        request_id = uuid7()
        transfer_id = await self.post("charge", -100 * tokens, posted, request_id)
        await self.owner.execute(
            "INSERT INTO usage_records (request_id, tenant_id, key_id, deployment, price_class,"
            " api, outcome, admitted_at, finished_at, input_tokens, output_tokens, request_bytes,"
            " response_bytes, compute_us, node, attempt, gateway_id, trace_id, price_version,"
            " rated_class, amount_nanos, currency, transfer_id) VALUES ($1, $2, 'key_test',"
            " 'tiny-lm', 'chat-small', 'openai.chat', 'completed', $3, $3, $4, 0, 1, 1, 1, 'n', 1,"
            " 'g1', '', 1, 'chat-small', $5, 'USD', $6)",
            request_id, self.tenant_id, admitted, tokens, 100 * tokens, transfer_id,
        )  # fmt: skip
        return request_id

    async def close(self, month: str) -> Issued:
        """Close a month."""
        return await close_month(
            self.statements, NothingWaits(), self.tenant_id, checked_month(month)
        )


async def past_books(pool: Pool, admin: asyncpg.Connection) -> Books:
    """A tenant that is there since 14 August."""
    tenant_id = f"t-{uuid4().hex[:8]}"
    since = datetime(2026, 8, 14, tzinfo=UTC)
    await admin.execute(
        "INSERT INTO tenants (tenant_id, name, currency, created_at) VALUES ($1, $2, 'USD', $3)",
        tenant_id, f"Ácme {tenant_id}", since,
    )  # fmt: skip
    await admin.execute(
        "INSERT INTO accounts (kind, tenant_id, currency) VALUES ('revenue', NULL, 'USD'),"
        " ('payments_clearing', NULL, 'USD'), ('tenant_available', $1, 'USD')"
        " ON CONFLICT DO NOTHING",
        tenant_id,
    )
    return Books(
        tenant_id, admin, pool, Statements(pool, Journal(pool, WARRANTS), Prices(pool, WARRANTS))
    )


def at(month: int, day: int, hour: int = 12) -> datetime:
    """A moment of 2026, in UTC."""
    return datetime(2026, month, day, hour, tzinfo=UTC)
