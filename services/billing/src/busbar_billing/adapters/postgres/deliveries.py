"""Messages that are due at webhook endpoints: taken, and what became of them.

Whoever takes one has it for a while and holds no connection meanwhile; if it dies, the next
one takes it over. So a message arrives at least once, always with the same id.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from busbar_billing.adapters.postgres.database import Connection, Database
from busbar_billing.adapters.postgres.outbox import put_notices
from busbar_billing.adapters.postgres.webhooks import DROP_WAITING, read_endpoint
from busbar_billing.domain.webhooks import Attempt, Endpoint, EventType, Notice, Verdict

CLAIM_FOR = timedelta(seconds=60)
"""Longer than any attempt may take."""
PER_TENANT_AT_ONCE = 2
KEPT_FOR = timedelta(days=30)
_PRUNED_AT_ONCE, _PRUNE_ROUNDS_MAX = 1_000, 100
_CANDIDATES_MAX = 256

_CLAIM = """
    WITH due AS MATERIALIZED (
        SELECT delivery_id, tenant_id, next_attempt_at FROM webhook_deliveries
        WHERE state = 'pending' AND next_attempt_at <= now() AND tenant_id <> ALL($2::text[])
        ORDER BY next_attempt_at LIMIT $3
    ), fair AS MATERIALIZED (
        SELECT
            delivery_id, next_attempt_at,
            row_number() OVER (PARTITION BY tenant_id ORDER BY next_attempt_at) AS turn
        FROM due
    ), mine AS MATERIALIZED (
        SELECT d.delivery_id FROM webhook_deliveries AS d
        INNER JOIN fair AS f USING (delivery_id)
        WHERE f.turn <= $4 AND d.state = 'pending' AND d.next_attempt_at <= now()
        ORDER BY f.next_attempt_at LIMIT $1
        FOR UPDATE OF d SKIP LOCKED
    )
    UPDATE webhook_deliveries AS d SET
        attempts = d.attempts + 1, next_attempt_at = now() + $5::interval,
        claim_id = gen_random_uuid(), last_attempt_at = now(), last_status = NULL, last_error = ''
    FROM mine, webhook_messages AS m, webhook_endpoints AS e
    WHERE d.delivery_id = mine.delivery_id
    AND m.message_id = d.message_id AND e.endpoint_id = d.endpoint_id
    RETURNING d.delivery_id, d.claim_id, d.attempts, m.message_id, m.payload,
        now() - coalesce(e.failing_since, now()) AS failing_for, e.*
"""
_SAY = """
    UPDATE webhook_deliveries SET
        state = $3, last_status = $4, last_error = $5,
        next_attempt_at = now() + coalesce($6::interval, '0'),
        concluded_at = CASE WHEN $3 <> 'pending' THEN now() END
    WHERE delivery_id = $1 AND claim_id = $2 AND state = 'pending'
    RETURNING 1
"""
_WELL = """
    UPDATE webhook_endpoints SET failing_since = NULL
    WHERE endpoint_id = $1 AND failing_since IS NOT NULL
"""
_FAILING = """
    UPDATE webhook_endpoints SET failing_since = now()
    WHERE endpoint_id = $1 AND failing_since IS NULL
"""
_DISABLE = """
    UPDATE webhook_endpoints SET disabled_at = now(), disabled_reason = $2
    WHERE endpoint_id = $1 AND disabled_at IS NULL
    RETURNING 1
"""
_PRUNE = """
    DELETE FROM webhook_messages WHERE message_id IN (
        SELECT message_id FROM webhook_messages
        WHERE occurred_at < now() - $1::interval
        ORDER BY occurred_at LIMIT $2
    )
    RETURNING 1
"""


@dataclass(frozen=True, slots=True)
class Due:
    """A message that is this process's to deliver for CLAIM_FOR."""

    delivery_id: str
    claim_id: UUID
    number: int
    """Of the attempt, from 1."""
    message_id: str
    payload: str
    endpoint: Endpoint
    failing_for: timedelta
    """How long nothing has gone to the endpoint; none when the last did."""


class Deliveries:
    """What is due."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, most: int, busy_tenants: Collection[str]) -> list[Due]:
        """Take what is due, at most PER_TENANT_AT_ONCE for a tenant and none for busy ones."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                _CLAIM, most, list(busy_tenants), _CANDIDATES_MAX, PER_TENANT_AT_ONCE, CLAIM_FOR
            )
        return [
            Due(
                delivery_id=row["delivery_id"],
                claim_id=row["claim_id"],
                number=row["attempts"],
                message_id=row["message_id"],
                payload=row["payload"],
                endpoint=read_endpoint(row),
                failing_for=row["failing_for"],
            )
            for row in rows
        ]

    async def delivered(self, due: Due, attempt: Attempt) -> None:
        """It arrived. Changes nothing when another process took it over."""
        async with self._database.transaction() as connection:
            if await _say(connection, due, "delivered", attempt, None):
                await connection.execute(_WELL, due.endpoint.endpoint_id)

    async def failed(self, due: Due, attempt: Attempt, verdict: Verdict) -> bool:
        """It did not; return whether the endpoint was disabled for that.

        Changes nothing when another process took it over.
        """
        state = "failed" if verdict.retry_in is None else "pending"
        endpoint = due.endpoint
        async with self._database.transaction() as connection:
            if not await _say(connection, due, state, attempt, verdict.retry_in):
                return False
            await connection.execute(_FAILING, endpoint.endpoint_id)
            if not verdict.disable:
                return False
            disabled = await connection.fetchval(_DISABLE, endpoint.endpoint_id, verdict.disable)
            if disabled is None:
                return False
            await connection.execute(DROP_WAITING, endpoint.endpoint_id)
            data = {"endpoint_id": endpoint.endpoint_id, "reason": verdict.disable}
            notice = Notice(endpoint.tenant_id, EventType.WEBHOOK_DISABLED, data)
            await put_notices(connection, [notice])
            return True

    async def prune(self) -> int:
        """Forget messages older than KEPT_FOR, some at a time; return how many."""
        forgotten = 0
        for _ in range(_PRUNE_ROUNDS_MAX):
            async with self._database.connection() as connection:
                gone = len(await connection.fetch(_PRUNE, KEPT_FOR, _PRUNED_AT_ONCE))
            forgotten += gone
            if gone < _PRUNED_AT_ONCE:
                break
        return forgotten


async def _say(
    connection: Connection, due: Due, state: str, attempt: Attempt, retry_in: timedelta | None
) -> bool:
    said = await connection.fetchval(
        _SAY, due.delivery_id, due.claim_id, state, attempt.status, attempt.reason, retry_in
    )
    return said is not None
