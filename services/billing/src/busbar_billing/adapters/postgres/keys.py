"""API keys, as rows."""

from __future__ import annotations

import re

import asyncpg
from busbar_errors import NotFound

from busbar_billing.adapters.postgres.database import Database
from busbar_billing.adapters.postgres.prices import from_unix_ns, to_unix_ns
from busbar_billing.domain.keys import ApiKey
from busbar_billing.domain.names import is_tenant_id
from busbar_billing.usecases.keys import StoredKey

_KEY_ID = re.compile(r"key_[0-9a-f]{32}")
_NS_PER_MS = 1_000_000

_ADD = """
    INSERT INTO api_keys (key_id, tenant_id, name, key_hmac, prefix, deployments, expires_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    RETURNING *
"""
_REVOKE = """
    UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE key_id = $1 RETURNING *
"""
_OF_TENANT = """
    SELECT * FROM api_keys WHERE tenant_id = $1 AND key_id > $2 ORDER BY key_id LIMIT $3
"""
_ACTIVE = """
    SELECT * FROM api_keys WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
"""


class Keys:
    """Where keys are kept."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, key: ApiKey) -> StoredKey:
        """Add one; raise NotFound when there is no such tenant."""
        expires = None if key.expires_unix_ms is None else key.expires_unix_ms * _NS_PER_MS
        row = None
        if is_tenant_id(key.tenant_id):
            async with self._database.connection() as connection:
                try:
                    row = await connection.fetchrow(
                        _ADD,
                        key.key_id,
                        key.tenant_id,
                        key.name,
                        key.digest,
                        key.prefix,
                        list(key.deployments),
                        None if expires is None else from_unix_ns(expires),
                    )
                except asyncpg.ForeignKeyViolationError:
                    row = None
        if row is None:
            raise NotFound(f"there is no tenant {key.tenant_id[:80]!r}")
        return _read_key(row)

    async def revoke(self, key_id: str) -> StoredKey:
        """Revoke, or return it as it is when it is revoked already; raise NotFound."""
        row = None
        if _KEY_ID.fullmatch(key_id):
            async with self._database.connection() as connection:
                row = await connection.fetchrow(_REVOKE, key_id)
        if row is None:
            raise NotFound(f"there is no key {key_id[:80]!r}")
        return _read_key(row)

    async def of_tenant(self, tenant_id: str, limit: int, after: str) -> list[StoredKey]:
        """A tenant's keys, oldest first, from the first after `after`; revoked ones too."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_OF_TENANT, tenant_id, after, limit)
        return [_read_key(row) for row in rows]

    async def active(self) -> list[ApiKey]:
        """Every key that a gateway may accept now."""
        async with self._database.connection() as connection:
            return [_read_key(row).key for row in await connection.fetch(_ACTIVE)]


def _read_key(row: asyncpg.Record) -> StoredKey:
    expires_at = row["expires_at"]
    key = ApiKey(
        key_id=row["key_id"],
        tenant_id=row["tenant_id"],
        name=row["name"],
        digest=bytes(row["key_hmac"]),
        prefix=row["prefix"],
        deployments=tuple(row["deployments"]),
        expires_unix_ms=None if expires_at is None else to_unix_ns(expires_at) // _NS_PER_MS,
    )
    return StoredKey(key, row["created_at"], row["revoked_at"])
