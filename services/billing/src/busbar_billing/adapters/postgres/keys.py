"""API keys, as rows."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection, Mapping
from datetime import datetime

import asyncpg
from busbar_errors import Conflict, NotFound, Rejected

from busbar_billing.adapters.postgres.database import Connection, Connections
from busbar_billing.adapters.postgres.prices import from_unix_ns, to_unix_ns
from busbar_billing.domain.keys import (
    KEYS_PER_TENANT_MAX,
    ApiKey,
    PreviousSecret,
    Scope,
    check_keeps_promise,
)
from busbar_billing.domain.names import is_project_id, is_tenant_id
from busbar_billing.usecases.keys import NewSecret, StoredKey

PAGE_ROWS = 500
_KEY_ID = re.compile(r"key_[0-9a-f]{32}")
_PREFIX = re.compile(r"bb_[A-Za-z0-9_-]{6}")
_NS_PER_MS = 1_000_000

_ADD = """
    INSERT INTO api_keys (
        key_id, tenant_id, name, key_hmac, prefix, deployments, expires_at, scopes, project_id
    )
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
    RETURNING *
"""
# One at a time for each tenant, so that the count holds until the row is there.
_LOCK_TENANT = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"
_COUNT = "SELECT count(*) FROM api_keys WHERE tenant_id = $1 AND revoked_at IS NULL"
_PROJECT_OPEN = """
    SELECT FROM projects WHERE project_id = $1 AND tenant_id = $2 AND archived_at IS NULL
"""
# What people are shown. Digests are left out: who reads for a tenant may not know them.
_SHOWN = """
    SELECT
        key_id, tenant_id, name, prefix, deployments, expires_at, created_at, revoked_at,
        project_id, scopes, last_used_at, ''::bytea AS key_hmac,
        CASE WHEN previous_until IS NOT NULL THEN ''::bytea END AS previous_hmac,
        previous_prefix, previous_until
    FROM api_keys
"""
_OF_ANY_OR_ONE = "WHERE key_id = $1 AND ($2::text IS NULL OR tenant_id = $2)"
_SHOW_ONE = _SHOWN + _OF_ANY_OR_ONE
_ONE = "SELECT * FROM api_keys WHERE key_id = $1 AND ($2::text IS NULL OR tenant_id = $2)"
_REVOKE = """
    UPDATE api_keys SET revoked_at = coalesce(revoked_at, now())
    WHERE key_id = $1 AND ($2::text IS NULL OR tenant_id = $2)
    RETURNING *
"""
_ROTATE = """
    UPDATE api_keys SET
        previous_hmac = key_hmac, previous_prefix = prefix, previous_until = $4,
        key_hmac = $2, prefix = $3
    WHERE key_id = $1
    RETURNING *
"""
_OF_TENANT = (
    _SHOWN
    + """
    WHERE tenant_id = $1 AND key_id > $2 AND ($4::text IS NULL OR project_id = $4)
    ORDER BY key_id LIMIT $3
"""
)
_BY_PREFIX = (
    _SHOWN
    + """
    WHERE (prefix = $1 OR previous_prefix = $1) AND ($2::text IS NULL OR tenant_id = $2)
    ORDER BY key_id LIMIT 100
"""
)
_BY_DIGEST = """
    SELECT * FROM api_keys
    WHERE (key_hmac = ANY($1::bytea[]) OR previous_hmac = ANY($1::bytea[]))
    AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
"""
_USABLE_PAGE = """
    SELECT * FROM api_keys
    WHERE key_id > $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
    ORDER BY key_id LIMIT $2
"""
_NOTE_USE = """
    UPDATE api_keys AS k SET last_used_at = used.at
    FROM unnest($1::text[], $2::timestamptz[]) AS used (key_id, at)
    WHERE k.key_id = used.key_id AND (k.last_used_at IS NULL OR k.last_used_at < used.at)
"""


class Keys:
    """Where keys are kept. `tenant_id` given: keys of others are not there."""

    def __init__(self, database: Connections) -> None:
        self._database = database

    async def add(self, key: ApiKey) -> StoredKey:
        """Add one; raise NotFound when there is no such tenant or project, Rejected when the tenant
        has KEYS_PER_TENANT_MAX."""
        if not is_tenant_id(key.tenant_id):
            raise NotFound(f"there is no tenant {key.tenant_id[:80]!r}")
        async with self._database.transaction() as connection:
            await connection.execute(_LOCK_TENANT, key.tenant_id)
            await _check_room(connection, key)
            try:
                row = await connection.fetchrow(_ADD, *_columns(key))
            except asyncpg.ForeignKeyViolationError as error:
                raise NotFound(f"there is no tenant {key.tenant_id!r}") from error
            assert row is not None
            return _read_key(row)

    async def get(self, key_id: str, tenant_id: str | None) -> StoredKey:
        """To be shown, like lists of keys, so without digests; raise NotFound."""
        row = None
        if _KEY_ID.fullmatch(key_id):
            async with self._database.connection() as connection:
                row = await connection.fetchrow(_SHOW_ONE, key_id, tenant_id)
        return _read_key(_found(row, key_id))

    async def rotate(
        self, key_id: str, secret: NewSecret, tenant_id: str | None
    ) -> tuple[StoredKey, list[bytes]]:
        """Give a key a new secret; returns digests that are accepted no more, too. Raise NotFound,
        or Conflict when the key is revoked or expired, or an earlier overlap would be cut short."""
        if not _KEY_ID.fullmatch(key_id):
            raise NotFound(f"there is no key {key_id[:80]!r}")
        until = from_unix_ns(secret.old_until_unix_ms * _NS_PER_MS)
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(_ONE + " FOR UPDATE", key_id, tenant_id)
            old = _read_key(_found(row, key_id))
            expires = old.key.expires_unix_ms
            now_ms = await connection.fetchval("SELECT (extract(EPOCH FROM now()) * 1000)::int8")
            if old.revoked_at is not None or (expires is not None and expires <= now_ms):
                raise Conflict(f"key {key_id} is revoked or has expired: create a new one")
            check_keeps_promise(old.key, secret.old_until_unix_ms, now_ms)
            row = await connection.fetchrow(_ROTATE, key_id, secret.digest, secret.prefix, until)
        dropped = [old.key.previous.digest] if old.key.previous else []
        return _read_key(_found(row, key_id)), dropped

    async def revoke(self, key_id: str, tenant_id: str | None) -> StoredKey:
        """Revoke, or return it as it is when it is revoked already; raise NotFound."""
        row = None
        if _KEY_ID.fullmatch(key_id):
            async with self._database.connection() as connection:
                row = await connection.fetchrow(_REVOKE, key_id, tenant_id)
        return _read_key(_found(row, key_id))

    async def of_tenant(
        self, tenant_id: str, limit: int, after: str, project_id: str | None = None
    ) -> list[StoredKey]:
        """A tenant's keys, oldest first, from the first after `after`; revoked ones too."""
        if project_id is not None and not is_project_id(project_id):
            return []
        async with self._database.connection() as connection:
            rows = await connection.fetch(_OF_TENANT, tenant_id, after, limit, project_id)
        return [_read_key(row) for row in rows]

    async def by_prefix(self, prefix: str, tenant_id: str | None) -> list[StoredKey]:
        """Keys whose secret begins so, the one before a rotation too; 100 at most."""
        if not _PREFIX.fullmatch(prefix):
            return []
        async with self._database.connection() as connection:
            rows = await connection.fetch(_BY_PREFIX, prefix, tenant_id)
        return [_read_key(row) for row in rows]

    async def by_digests(self, digests: Collection[bytes]) -> list[ApiKey]:
        """Keys that are neither revoked nor expired and have or had one of these secrets."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_BY_DIGEST, list(digests))
        return [_read_key(row).key for row in rows]

    async def all_usable(self) -> AsyncIterator[list[ApiKey]]:
        """Every key that is neither revoked nor expired, page by page."""
        after = ""
        while True:
            async with self._database.connection() as connection:
                rows = await connection.fetch(_USABLE_PAGE, after, PAGE_ROWS)
            if not rows:
                return
            yield [_read_key(row).key for row in rows]
            after = rows[-1]["key_id"]

    async def note_use(self, used_at: Mapping[str, datetime]) -> None:
        """Write down when keys were last used; ids that are none of ours are passed over."""
        ids = [key_id for key_id in used_at if _KEY_ID.fullmatch(key_id)]
        async with self._database.connection() as connection:
            await connection.execute(_NOTE_USE, ids, [used_at[key_id] for key_id in ids])


async def _check_room(connection: Connection, key: ApiKey) -> None:
    if await connection.fetchval(_COUNT, key.tenant_id) >= KEYS_PER_TENANT_MAX:
        raise Rejected(
            f"tenant {key.tenant_id} has {KEYS_PER_TENANT_MAX} keys, as many as one may have: "
            "revoke some first"
        )
    if key.project_id is None:
        return
    project = None
    if is_project_id(key.project_id):
        project = await connection.fetchrow(_PROJECT_OPEN, key.project_id, key.tenant_id)
    if project is None:
        raise NotFound(f"there is no project {key.project_id[:80]!r}")


def _found(row: asyncpg.Record | None, key_id: str) -> asyncpg.Record:
    if row is None:
        raise NotFound(f"there is no key {key_id[:80]!r}")
    return row


def _columns(key: ApiKey) -> tuple[object, ...]:
    expires = key.expires_unix_ms
    return (
        key.key_id,
        key.tenant_id,
        key.name,
        key.digest,
        key.prefix,
        list(key.deployments),
        None if expires is None else from_unix_ns(expires * _NS_PER_MS),
        [scope.value for scope in key.scopes],
        key.project_id,
    )


def _unix_ms(moment: datetime) -> int:
    return to_unix_ns(moment) // _NS_PER_MS


def _read_key(row: asyncpg.Record) -> StoredKey:
    expires_at = row["expires_at"]
    previous = None
    if row["previous_hmac"] is not None:
        previous = PreviousSecret(
            bytes(row["previous_hmac"]), row["previous_prefix"], _unix_ms(row["previous_until"])
        )
    key = ApiKey(
        key_id=row["key_id"],
        tenant_id=row["tenant_id"],
        name=row["name"],
        digest=bytes(row["key_hmac"]),
        prefix=row["prefix"],
        deployments=tuple(row["deployments"]),
        expires_unix_ms=None if expires_at is None else _unix_ms(expires_at),
        scopes=tuple(Scope(scope) for scope in row["scopes"]),
        project_id=row["project_id"],
        previous=previous,
    )
    return StoredKey(key, row["created_at"], row["revoked_at"], row["last_used_at"])
