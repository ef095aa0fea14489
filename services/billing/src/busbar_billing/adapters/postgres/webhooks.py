"""Webhook endpoints and what was sent to them, as rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

import asyncpg
from busbar_errors import Conflict, NotFound, Rejected

from busbar_billing.adapters.postgres.database import Connection, Database
from busbar_billing.adapters.postgres.outbox import write_payload
from busbar_billing.domain.names import is_tenant_id
from busbar_billing.domain.webhooks import (
    ASKED_WAITING_MAX,
    ENDPOINTS_PER_TENANT_MAX,
    Endpoint,
    EventType,
    Notice,
    check_signs_on,
)
from busbar_billing.usecases.webhooks import Delivery

_ENDPOINT_ID = re.compile(r"whe_[0-9a-f]{32}")
_DELIVERY_ID = re.compile(r"whd_[0-9a-f]{32}")

# One at a time for each tenant, so that the count holds until the row is there.
_LOCK_TENANT = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"
_COUNT = "SELECT count(*) FROM webhook_endpoints WHERE tenant_id = $1"
_ADD = """
    INSERT INTO webhook_endpoints (endpoint_id, tenant_id, url, description, event_types, salt)
    VALUES ($1, $2, $3, $4, $5, $6) RETURNING *
"""
_ALL = "SELECT * FROM webhook_endpoints WHERE tenant_id = $1 ORDER BY endpoint_id"
_ONE = "SELECT * FROM webhook_endpoints WHERE tenant_id = $1 AND endpoint_id = $2"
_CHANGE = """
    UPDATE webhook_endpoints SET
        url = $3, description = $4, event_types = $5, disabled_at = $6, disabled_reason = $7,
        -- Enabled again: what was before does not count.
        failing_since = CASE
            WHEN disabled_at IS NULL OR $6::timestamptz IS NOT NULL THEN failing_since
        END
    WHERE tenant_id = $1 AND endpoint_id = $2
    RETURNING *
"""
_LOCK_ONE = _ONE + " FOR UPDATE"
_ROTATE = """
    UPDATE webhook_endpoints SET
        previous_salt = CASE WHEN $4::timestamptz IS NOT NULL THEN salt END, previous_until = $4,
        salt = $3
    WHERE tenant_id = $1 AND endpoint_id = $2
    RETURNING *
"""
DROP_WAITING = """
    UPDATE webhook_deliveries SET
        state = 'failed', last_error = 'the endpoint was disabled', concluded_at = now()
    WHERE endpoint_id = $1 AND state = 'pending'
"""
_DELETE = "DELETE FROM webhook_endpoints WHERE tenant_id = $1 AND endpoint_id = $2 RETURNING 1"
_WAITING = """
    SELECT count(*) FROM webhook_deliveries WHERE endpoint_id = $1 AND state = 'pending'
"""
_PUT_ONE = """
    WITH stored AS (
        INSERT INTO webhook_messages (tenant_id, type, payload) VALUES ($1, $2, $3)
        RETURNING message_id
    )
    INSERT INTO webhook_deliveries (message_id, endpoint_id, tenant_id)
    SELECT message_id, $4, $1 FROM stored
    RETURNING delivery_id
"""
_DELIVERIES = """
    SELECT d.*, m.type, m.occurred_at
    FROM webhook_deliveries AS d
    INNER JOIN webhook_messages AS m USING (message_id)
    WHERE d.tenant_id = $1 AND d.endpoint_id = $2
"""
_DELIVERY = _DELIVERIES + " AND d.delivery_id = $3"
_PAGE = _DELIVERIES + " AND d.delivery_id < $3 ORDER BY d.delivery_id DESC LIMIT $4"
_AGAIN = """
    UPDATE webhook_deliveries SET
        state = 'pending', attempts = 0, next_attempt_at = now(), claim_id = NULL,
        concluded_at = NULL
    WHERE tenant_id = $1 AND endpoint_id = $2 AND delivery_id = $3 AND state <> 'pending'
"""


class Webhooks:
    """Where they are kept; those of other tenants are not there."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, endpoint: Endpoint) -> Endpoint:
        """Add one; raise NotFound for an unknown tenant and Rejected when it has too many."""
        async with self._database.transaction() as connection:
            await connection.execute(_LOCK_TENANT, endpoint.tenant_id)
            if await connection.fetchval(_COUNT, endpoint.tenant_id) >= ENDPOINTS_PER_TENANT_MAX:
                raise Rejected(
                    f"a tenant has at most {ENDPOINTS_PER_TENANT_MAX} webhook endpoints: "
                    "delete one first"
                )
            try:
                row = await connection.fetchrow(
                    _ADD,
                    endpoint.endpoint_id,
                    endpoint.tenant_id,
                    endpoint.url,
                    endpoint.description,
                    list(endpoint.event_types),
                    endpoint.salt,
                )
            except asyncpg.ForeignKeyViolationError as error:
                raise NotFound(f"there is no tenant {endpoint.tenant_id[:80]!r}") from error
        assert row is not None
        return read_endpoint(row)

    async def all_of(self, tenant_id: str) -> list[Endpoint]:
        """A tenant's endpoints, oldest first."""
        if not is_tenant_id(tenant_id):
            return []
        async with self._database.as_tenant(tenant_id) as connection:
            return [read_endpoint(row) for row in await connection.fetch(_ALL, tenant_id)]

    async def get(self, tenant_id: str, endpoint_id: str) -> Endpoint:
        """Raise NotFound when there is none."""
        row = None
        if is_tenant_id(tenant_id) and _ENDPOINT_ID.fullmatch(endpoint_id):
            async with self._database.as_tenant(tenant_id) as connection:
                row = await connection.fetchrow(_ONE, tenant_id, endpoint_id)
        return read_endpoint(_found(row, endpoint_id))

    async def change(self, endpoint: Endpoint) -> Endpoint:
        """Keep an endpoint as it is now, but for its secret; when it is disabled nothing waits for
        it any more. Raise NotFound when there is none."""
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(
                _CHANGE,
                endpoint.tenant_id,
                endpoint.endpoint_id,
                endpoint.url,
                endpoint.description,
                list(endpoint.event_types),
                endpoint.disabled_at,
                endpoint.disabled_reason,
            )
            if endpoint.disabled_at is not None:
                await connection.execute(DROP_WAITING, endpoint.endpoint_id)
        return read_endpoint(_found(row, endpoint.endpoint_id))

    async def rotate(
        self, tenant_id: str, endpoint_id: str, salt: bytes, old_until: datetime | None
    ) -> Endpoint:
        """Give an endpoint another secret; raise NotFound when there is none, Conflict when an
        earlier overlap would be cut short."""
        await self.get(tenant_id, endpoint_id)
        async with self._database.transaction() as connection:
            old = _found(await connection.fetchrow(_LOCK_ONE, tenant_id, endpoint_id), endpoint_id)
            now = await connection.fetchval("SELECT clock_timestamp()")
            check_signs_on(read_endpoint(old), old_until, now)
            row = await connection.fetchrow(_ROTATE, tenant_id, endpoint_id, salt, old_until)
        return read_endpoint(_found(row, endpoint_id))

    async def delete(self, tenant_id: str, endpoint_id: str) -> None:
        """Delete one with all that was sent to it; raise NotFound when there is none."""
        await self.get(tenant_id, endpoint_id)
        async with self._database.connection() as connection:
            _found(await connection.fetchrow(_DELETE, tenant_id, endpoint_id), endpoint_id)

    async def ask_for(self, endpoint: Endpoint, notice: Notice) -> Delivery:
        """Queue a message for one endpoint; raise Conflict when it gets none or too many wait."""
        async with self._database.transaction() as connection:
            await _check_room(connection, endpoint)
            delivery_id = await connection.fetchval(
                _PUT_ONE,
                notice.tenant_id,
                notice.type.value,
                write_payload(notice, datetime.now(UTC)),
                endpoint.endpoint_id,
            )
        return await self.delivery(endpoint, delivery_id)

    async def deliver_again(self, endpoint: Endpoint, delivery_id: str) -> Delivery:
        """Queue a message once more; one that is under way stays as it is. Raise NotFound, or
        Conflict as above."""
        await self.delivery(endpoint, delivery_id)
        async with self._database.transaction() as connection:
            await _check_room(connection, endpoint)
            await connection.execute(_AGAIN, endpoint.tenant_id, endpoint.endpoint_id, delivery_id)
        return await self.delivery(endpoint, delivery_id)

    async def delivery(self, endpoint: Endpoint, delivery_id: str) -> Delivery:
        """Raise NotFound when there is none."""
        row = None
        if _DELIVERY_ID.fullmatch(delivery_id):
            async with self._database.as_tenant(endpoint.tenant_id) as connection:
                row = await connection.fetchrow(
                    _DELIVERY, endpoint.tenant_id, endpoint.endpoint_id, delivery_id
                )
        if row is None:
            raise NotFound(f"there is no delivery {delivery_id[:80]!r}")
        return _read_delivery(row)

    async def deliveries(self, endpoint: Endpoint, limit: int, before: str) -> list[Delivery]:
        """What was sent to an endpoint, newest first, of those below `before`."""
        async with self._database.as_tenant(endpoint.tenant_id) as connection:
            rows: Sequence[asyncpg.Record] = await connection.fetch(
                _PAGE, endpoint.tenant_id, endpoint.endpoint_id, before, limit
            )
        return [_read_delivery(row) for row in rows]


async def _check_room(connection: Connection, endpoint: Endpoint) -> None:
    if endpoint.disabled_at is not None:
        raise Conflict("the endpoint is disabled: enable it first")
    await connection.execute(_LOCK_TENANT, endpoint.tenant_id)
    if await connection.fetchval(_WAITING, endpoint.endpoint_id) >= ASKED_WAITING_MAX:
        raise Conflict(f"{ASKED_WAITING_MAX} messages wait for this endpoint: ask again later")


def _found(row: asyncpg.Record | None, endpoint_id: str) -> asyncpg.Record:
    if row is None:
        raise NotFound(f"there is no webhook endpoint {endpoint_id[:80]!r}")
    return row


def read_endpoint(row: asyncpg.Record) -> Endpoint:
    """From a row of webhook_endpoints."""
    return Endpoint(
        endpoint_id=row["endpoint_id"],
        tenant_id=row["tenant_id"],
        url=row["url"],
        description=row["description"],
        event_types=tuple(EventType(one) for one in row["event_types"]),
        salt=row["salt"],
        created_at=row["created_at"],
        previous_salt=row["previous_salt"],
        previous_until=row["previous_until"],
        failing_since=row["failing_since"],
        disabled_at=row["disabled_at"],
        disabled_reason=row["disabled_reason"],
    )


def _read_delivery(row: asyncpg.Record) -> Delivery:
    pending = row["state"] == "pending"
    return Delivery(
        delivery_id=row["delivery_id"],
        message_id=row["message_id"],
        endpoint_id=row["endpoint_id"],
        type=row["type"],
        state=row["state"],
        attempts=row["attempts"],
        created_at=row["occurred_at"],
        next_attempt_at=row["next_attempt_at"] if pending else None,
        last_attempt_at=row["last_attempt_at"],
        last_status=row["last_status"],
        last_error=row["last_error"],
    )
