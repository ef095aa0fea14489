"""How far the auditor is and what it found, as rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

import asyncpg

from busbar_billing.adapters.postgres.database import Database
from busbar_billing.domain.audit.findings import Breach, Check
from busbar_billing.usecases.audit import EARLIEST
from busbar_billing.usecases.audit_walk import Mark, Walk
from busbar_billing.usecases.audit_work import FIRST_MONTH, TenantMonth

_WALK = "SELECT * FROM audit_walks WHERE walk = $1"
_REPLAYED = "SELECT account_id, replayed_nanos FROM audit_replayed WHERE walk = $1"
_SAVE = """
    INSERT INTO audit_walks (walk, began_at, position) VALUES ($1, $2, $3::jsonb)
    ON CONFLICT (walk) DO UPDATE
    SET began_at = excluded.began_at, position = excluded.position, changed_at = now()
"""
_SAVE_REPLAYED = """
    INSERT INTO audit_replayed (walk, account_id, replayed_nanos)
    SELECT $1, * FROM unnest($2::int8[], $3::numeric[])
    ON CONFLICT (walk, account_id) DO UPDATE SET replayed_nanos = excluded.replayed_nanos
"""
_FORGET = "DELETE FROM audit_replayed WHERE walk = $1"
_END = "UPDATE audit_walks SET position = NULL, changed_at = now() WHERE walk = $1"
# Told: those that were not there, or had gone.
_NOTE = """
    WITH found AS (
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
        AS f (fingerprint, check_name, subject, detail)
    ), known AS (
        SELECT b.fingerprint FROM audit_breaches AS b
        INNER JOIN found AS f ON f.fingerprint = b.fingerprint WHERE b.gone_at IS NULL
    ), noted AS (
        INSERT INTO audit_breaches AS b (fingerprint, check_name, subject, detail)
        SELECT fingerprint, check_name, subject, detail FROM found
        ON CONFLICT (fingerprint) DO UPDATE SET
            detail = excluded.detail, seen_at = now(), gone_at = NULL,
            found_at = CASE WHEN b.gone_at IS NULL THEN b.found_at ELSE now() END
        RETURNING b.fingerprint
    )
    SELECT fingerprint FROM noted WHERE fingerprint NOT IN (SELECT fingerprint FROM known)
"""
_GONE = "UPDATE audit_breaches SET gone_at = now() WHERE gone_at IS NULL AND seen_at < $1"
_OPEN = """
    SELECT * FROM audit_breaches WHERE gone_at IS NULL ORDER BY found_at DESC, fingerprint LIMIT $1
"""
_COUNTS = """
    SELECT check_name, count(*) AS breaches FROM audit_breaches WHERE gone_at IS NULL GROUP BY 1
"""
_STANDING = """
    SELECT
        max(position ->> 'transfer') FILTER (WHERE walk = 'new') AS followed,
        max(began_at) FILTER (WHERE walk = 'sweep' AND position IS NULL) AS swept_at
    FROM audit_walks
"""
OPEN_LISTED_MAX = 1_000
_ENDED = "SELECT changed_at FROM audit_walks WHERE walk = $1 AND position IS NULL"


@dataclass(frozen=True, slots=True)
class FoundBreach:
    """A breach that nothing has repaired, and since when it is known."""

    check: str
    subject: str
    detail: str
    found_at: datetime


@dataclass(frozen=True, slots=True)
class AuditStanding:
    """How far the audit that never ends is; None: not yet."""

    followed_to: UUID | None
    """The transfer up to which all is checked."""
    swept_at: datetime | None
    """When the last audit from zero that came to its end began."""
    breaches: list[FoundBreach]


class AuditWalks:
    """Where the auditor keeps what it knows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self, walk: str) -> Walk | None:
        """A walk that is under way."""
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(_WALK, walk)
            if row is None or row["position"] is None:
                return None
            sums = await connection.fetch(_REPLAYED, walk)
        replayed = {one["account_id"]: int(one["replayed_nanos"]) for one in sums}
        return Walk(row["began_at"], _read_mark(row), replayed)

    async def ended_at(self, walk: str) -> datetime | None:
        """When a walk last came to its end; None when it is under way or never began."""
        async with self._database.connection() as connection:
            return await connection.fetchval(_ENDED, walk)

    async def save(self, name: str, walk: Walk) -> None:
        """Keep how far it is."""
        touched = sorted(walk.touched)
        async with self._database.transaction() as connection:
            await connection.execute(_SAVE, name, walk.began_at, _write_mark(walk.mark))
            sums = [walk.replayed[account_id] for account_id in touched]
            await connection.execute(_SAVE_REPLAYED, name, touched, sums)
        walk.touched.clear()

    async def forget(self, name: str) -> None:
        """What a walk has added up: it is to begin anew."""
        async with self._database.transaction() as connection:
            await connection.execute(_FORGET, name)

    async def end(self, name: str, walk: Walk) -> None:
        """It is at its end; what it did not see any more is gone."""
        async with self._database.transaction() as connection:
            await connection.execute(_FORGET, name)
            await connection.execute(_END, name)
            await connection.execute(_GONE, walk.began_at)

    async def note(self, breaches: Sequence[Breach]) -> list[Breach]:
        """Keep what was found; returns what was not known."""
        if not breaches:
            return []
        by_print = {one.fingerprint: one for one in breaches}
        found = list(by_print.values())
        async with self._database.transaction() as connection:
            rows = await connection.fetch(
                _NOTE,
                list(by_print),
                [one.check.value for one in found],
                [one.subject for one in found],
                [one.detail[:1_000] for one in found],
            )
        return [by_print[row["fingerprint"]] for row in rows]

    async def open_breaches(self, limit: int) -> list[FoundBreach]:
        """What was found and nothing has repaired, the latest first."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_OPEN, limit)
        return [
            FoundBreach(row["check_name"], row["subject"], row["detail"], row["found_at"])
            for row in rows
        ]

    async def standing(self) -> AuditStanding:
        """How far it is and what it knows."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_STANDING)
        followed = row["followed"] if row else None
        return AuditStanding(
            UUID(followed) if followed else None,
            row["swept_at"] if row else None,
            await self.open_breaches(OPEN_LISTED_MAX),
        )

    async def counts(self) -> dict[Check, int]:
        """How many there are of each check."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_COUNTS)
        found = {row["check_name"]: row["breaches"] for row in rows}
        return {check: found.get(check.value, 0) for check in Check}


def _write_mark(mark: Mark) -> str:
    created = mark.stream_created_at
    return json.dumps(
        {
            "transfer": str(mark.transfer),
            "inbox": str(mark.inbox),
            "message": mark.message,
            "stream_created_at": None if created is None else created.isoformat(),
            "work": None if mark.work is None else mark.work.isoformat(),
            "month": _write_month(mark.month),
            "statement": _write_month(mark.statement),
        }
    )


def _read_mark(row: asyncpg.Record) -> Mark:
    kept = json.loads(row["position"])
    created = kept["stream_created_at"]
    return Mark(
        UUID(kept["transfer"]),
        UUID(kept["inbox"]),
        kept["message"],
        None if created is None else datetime.fromisoformat(created),
        _read_work(kept),
        _read_month(kept, "month"),
        _read_month(kept, "statement"),
    )


def _read_work(kept: dict[str, Any]) -> datetime | None:
    """The default where the release before kept the mark."""
    if "work" not in kept:
        return EARLIEST
    return None if kept["work"] is None else datetime.fromisoformat(kept["work"])


def _write_month(month: TenantMonth | None) -> list[str] | None:
    return None if month is None else [month.tenant_id, month.month.isoformat()]


def _read_month(kept: dict[str, Any], name: str) -> TenantMonth | None:
    if name not in kept:
        return FIRST_MONTH
    found = kept[name]
    return None if found is None else TenantMonth(found[0], date.fromisoformat(found[1]))
