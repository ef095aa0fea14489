"""Rows as digests, and seals as rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from busbar_billing.adapters.auditor import moment_of
from busbar_billing.adapters.postgres.database import AUDIT_TIMEOUT_MS, Connection, Database
from busbar_billing.domain.audit.seals import Content, Part, Seal
from busbar_billing.domain.warrants import VOUCHED_KINDS
from busbar_billing.usecases.audit_seals import Piece

_TIMEOUT_S = AUDIT_TIMEOUT_MS / 1000 + 5
# A row as text quotes whatever could be taken for its end, so no two lists of rows read alike.
_DIGEST = """
    SELECT count(*) AS rows,
        sha256(convert_to(coalesce(string_agg({row}::text, E'\\n' ORDER BY {order}), ''), 'UTF8'))
        AS content
    FROM {table} WHERE {key} > $1 AND {key} <= $2
"""
_OF_VERSIONS = "{table} AS p INNER JOIN price_books AS b ON b.version = p.version"


def _digest(table: str, row: str, key: str, order: str) -> str:
    return _DIGEST.format(table=table, row=row, key=key, order=order)


_ACCOUNT = "LEFT JOIN accounts AS a ON a.account_id = p.account_id"
_LINE = "p.*, a.kind, a.tenant_id, a.currency"
_VOUCHED = ", ".join(f"'{kind}'" for kind in sorted(VOUCHED_KINDS))
# What the checks of a part read is digested with it, wherever it is kept.
_DIGESTS = {
    # By when they were published: a price that says it is older than a seal does not fit it.
    Part.PRICES: (
        _digest("price_books AS b", "b", "b.created_at", "b.version"),
        *(
            _digest(_OF_VERSIONS.format(table=table), "p", "b.created_at", "p.version, p::text")
            for table in ("prices", "price_tiers")
        ),
    ),
    Part.JOURNAL: (
        _digest("transfers AS t", "t", "t.transfer_id", "t.transfer_id"),
        _digest(
            f"postings AS p {_ACCOUNT}", f"ROW({_LINE})", "p.transfer_id", "p.transfer_id, p.line"
        ),
        _digest(
            f"transfers AS t INNER JOIN warrants AS w ON t.kind IN ({_VOUCHED})"
            " AND w.subject = 'transfer ' || t.transfer_id",
            "w",
            "t.transfer_id",
            "t.transfer_id",
        ),
        _digest(
            "transfers AS t INNER JOIN usage_voids AS v"
            " ON v.request_id = CASE WHEN t.kind = 'void' THEN t.request_id END"
            " LEFT JOIN warrants AS w ON w.subject = 'void ' || v.request_id",
            "ROW(v.*, w.*)",
            "t.transfer_id",
            "t.transfer_id",
        ),
        _digest(
            "transfers AS t INNER JOIN usage_records AS u"
            " ON u.request_id = t.request_id AND t.kind = 'charge'",
            "u",
            "t.transfer_id",
            "t.transfer_id",
        ),
        _digest(
            "transfers AS t LEFT JOIN usage_voids AS w ON w.request_id = t.request_id"
            " INNER JOIN transfers AS c ON c.request_id = t.request_id AND t.kind = 'void'"
            " AND c.kind = 'charge'"
            f" LEFT JOIN postings AS p ON p.transfer_id = c.transfer_id {_ACCOUNT}",
            f"ROW(w.request_id, c.*, {_LINE})",
            "t.transfer_id",
            "t.transfer_id, c.transfer_id, p.line",
        ),
    ),
    Part.INBOX: (
        _digest(
            "usage_records AS u LEFT JOIN transfers AS c ON c.transfer_id = u.transfer_id"
            " AND c.request_id = u.request_id AND c.kind = 'charge'"
            " LEFT JOIN usage_voids AS w ON w.request_id = u.request_id",
            "ROW(u.request_id, u.transfer_id, c.transfer_id, w.request_id, EXISTS ("
            " SELECT FROM transfers AS v WHERE v.request_id = u.request_id AND v.kind = 'void'))",
            "u.request_id",
            "u.request_id",
        ),
    ),
}
# The last of a full piece; none where there are fewer rows.
_ENDS = {
    Part.JOURNAL: """
        SELECT transfer_id FROM transfers WHERE transfer_id > $1 AND transfer_id <= $2
        ORDER BY transfer_id OFFSET $3::int - 1 LIMIT 1
    """,
    Part.INBOX: """
        SELECT request_id FROM usage_records WHERE request_id > $1 AND request_id <= $2
        ORDER BY request_id OFFSET $3::int - 1 LIMIT 1
    """,
}
_POSTED = """
    SELECT account_id, sum(amount_nanos) AS nanos FROM postings
    WHERE transfer_id > $1 AND transfer_id <= $2 GROUP BY account_id
"""
_KEPT = "SELECT part, upto, rows, digest FROM audit_seals ORDER BY part, upto"
# Another instance may keep its own at the same moment: then the later ones stay.
_ALONE = "LOCK TABLE audit_seals IN SHARE ROW EXCLUSIVE MODE"
_FORGET = "DELETE FROM audit_seals"
_KEEP = """
    INSERT INTO audit_seals (part, upto, rows, digest)
    SELECT * FROM unnest($1::text[], $2::uuid[], $3::int8[], $4::bytea[])
"""


class AuditSeals:
    """Digests pieces, each at one moment, and keeps seals."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def piece(self, part: Part, after: UUID, upto: UUID, limit: int) -> Piece:
        """The next rows up to `upto`, at most `limit` of them; prices are one piece."""
        async with self._database.as_auditor() as connection:
            if part is Part.PRICES:
                window = (moment_of(after), moment_of(upto))
                return Piece(Content(part, upto, *await _read(connection, part, *window)))
            end = await connection.fetchval(_ENDS[part], after, upto, limit, timeout=_TIMEOUT_S)
            last: UUID = end or upto
            content = Content(part, last, *await _read(connection, part, after, last))
            if part is Part.INBOX:
                return Piece(content)
            posted = await connection.fetch(_POSTED, after, last, timeout=_TIMEOUT_S)
        return Piece(content, {row["account_id"]: int(row["nanos"]) for row in posted})

    async def kept(self) -> list[Seal]:
        """All seals, each part's in order."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_KEPT)
        return [Seal(Part(row["part"]), row["upto"], row["rows"], row["digest"]) for row in rows]

    async def keep(self, seals: Sequence[Seal]) -> None:
        """These instead of what was kept."""
        columns = (
            [one.part.value for one in seals],
            [one.upto for one in seals],
            [one.rows for one in seals],
            [one.digest for one in seals],
        )
        async with self._database.transaction() as connection:
            await connection.execute(_ALONE)
            await connection.execute(_FORGET)
            await connection.execute(_KEEP, *columns)


async def _read(
    connection: Connection, part: Part, after: UUID | datetime, upto: UUID | datetime
) -> tuple[int, bytes]:
    """How many rows the first table of a part has there, and a digest of all of its tables."""
    found = [
        await connection.fetchrow(digest, after, upto, timeout=_TIMEOUT_S)
        for digest in _DIGESTS[part]
    ]
    rows = [row for row in found if row is not None]
    joined = hashlib.sha256(b"".join(row["content"] for row in rows))
    return rows[0]["rows"], joined.digest()
