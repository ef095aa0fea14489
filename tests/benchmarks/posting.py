"""`./just bench`: posting usage to the ledger, against bare INSERTs of the same rows, same run.

The limit is what Postgres takes when the rows that a posting leaves behind, those of
usage_records, transfers and postings, are inserted in batches of the same size into tables
with the same indexes and nothing else: no triggers, no balances, no rollups, no rating.
Rounds are interleaved. One connection each, as in the service.
"""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import asyncpg
from busbar_billing.adapters.bus.usage import RECORDS_PER_TRANSACTION_MAX
from busbar_billing.adapters.ids import new_id
from busbar_billing.adapters.postgres.database import Database, open_database
from busbar_billing.adapters.postgres.journal import Journal
from busbar_billing.adapters.postgres.posting import Ledger
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.adapters.postgres.warrants import Warrants
from busbar_billing.domain.usage import Outcome, UsageRecord
from busbar_billing.main import spare_the_collector
from busbar_billing.migrate import admit_service, apply_migrations
from busbar_billing.usecases.post_usage import post_usage
from busbar_runtime.platform import Platform
from busbar_runtime.pytest_plugin import PostgresServer
from report import machine, parser, put_table

TENANTS = 500
BATCH = RECORDS_PER_TRANSACTION_MAX
TARGET_PER_S = 5_000
TARGET_RATIO = 0.5
HEAD = ("", "records/s", "÷ bare")
LEFT_BEHIND = ("usage_records", "transfers", "postings")
_LEASES = """
    INSERT INTO leases (
        lease_id, tenant_id, currency, gateway_id, run_id,
        granted_nanos, returned_nanos, posted_nanos, expires_at
    )
    SELECT gen_random_uuid(), 'bench-' || n, 'USD', 'g1', 'run',
        1000000000000000, 0, 0, now() + interval '1 day'
    FROM generate_series(1, $1) AS n
    RETURNING tenant_id, lease_id
"""


def records(count: int, leases: dict[str, UUID]) -> list[UsageRecord]:
    """Records of as many tenants as there are leases, in turns."""
    now_ns, tenants = time.time_ns(), sorted(leases)
    plain = UsageRecord(
        request_id=UUID(int=0),
        tenant_id="",
        key_id="key_01a1fc63811973c281bc10cc6802070c",
        deployment="tiny-lm",
        price_class="chat-small",
        api="openai.chat",
        outcome=Outcome.COMPLETED,
        admitted_unix_ns=now_ns,
        finished_unix_ns=now_ns + 10**9,
        input_tokens=1_234,
        output_tokens=321,
        request_bytes=5_000,
        response_bytes=2_000,
        compute_us=800_000,
        node="r1.s1.n1",
        attempt=1,
        gateway_id="g1",
        traceparent="",
    )
    return [
        dataclasses.replace(plain, request_id=new_id(), tenant_id=tenant, lease_id=leases[tenant])
        for tenant in (tenants[number % len(tenants)] for number in range(count))
    ]


async def prepare(admin: asyncpg.Connection) -> dict[str, UUID]:
    """Tenants with a lease each, and the bare tables; returns the leases by tenant."""
    await admin.execute(
        "INSERT INTO tenants (tenant_id, name, currency)"
        f" SELECT 'bench-' || n, 'bench ' || n, 'USD' FROM generate_series(1, {TENANTS}) AS n"
    )
    for table in LEFT_BEHIND:
        await admin.execute(f"CREATE TABLE bare_{table} (LIKE {table} INCLUDING ALL)")
    return {row["tenant_id"]: row["lease_id"] for row in await admin.fetch(_LEASES, TENANTS)}


async def post(ledger: Ledger, wanted: Sequence[UsageRecord]) -> float:
    """Records posted per second."""
    started = time.monotonic()
    for start in range(0, len(wanted), BATCH):
        report = await post_usage(ledger, wanted[start : start + BATCH], [], new_id)
        assert len(report.charged) == len(wanted[start : start + BATCH])
    return len(wanted) / (time.monotonic() - started)


async def insert_bare(admin: asyncpg.Connection, wanted: Sequence[UsageRecord]) -> float:
    """Records per second when what posting them left behind is only inserted."""
    batches = [
        await left_behind(admin, [one.request_id for one in wanted[start : start + BATCH]])
        for start in range(0, len(wanted), BATCH)
    ]
    started = time.monotonic()
    for batch in batches:
        async with admin.transaction():
            for statement, columns in batch:
                await admin.execute(statement, *columns)
    return len(wanted) / (time.monotonic() - started)


async def left_behind(
    admin: asyncpg.Connection, request_ids: list[UUID]
) -> list[tuple[str, list[list[object]]]]:
    """For each table the INSERT and its columns."""
    made: list[tuple[str, list[list[object]]]] = []
    of_requests = "WHERE request_id = ANY($1::uuid[])"
    of_transfers = f"WHERE transfer_id IN (SELECT transfer_id FROM transfers {of_requests})"
    for table in LEFT_BEHIND:
        types = await admin.fetch(
            "SELECT attname, format_type(atttypid, atttypmod) AS type FROM pg_attribute"
            " WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            table,
        )
        where = of_transfers if table == "postings" else of_requests
        rows = await admin.fetch(f"SELECT * FROM {table} {where}", request_ids)
        names = ", ".join(row["attname"] for row in types)
        arrays = ", ".join(f"${n}::{row['type']}[]" for n, row in enumerate(types, start=1))
        statement = f"INSERT INTO bare_{table} ({names}) SELECT * FROM unnest({arrays})"
        made.append((statement, [list(column) for column in zip(*rows, strict=True)]))
    return made


async def measure(
    database: Database, admin: asyncpg.Connection, rounds: int, count: int
) -> Medians:
    """Medians over interleaved rounds, after one that does not count."""
    leases = await prepare(admin)
    warrants = Warrants(b"a key of its own")
    ledger = Ledger(database, Journal(database, warrants), Prices(database, warrants))
    spare_the_collector()  # as the service does
    posted: list[float] = []
    bare: list[float] = []
    for number in range(rounds + 1):
        wanted = records(count, leases)
        one, other = await post(ledger, wanted), await insert_bare(admin, wanted)
        if number:
            posted.append(one)
            bare.append(other)
    return Medians(statistics.median(posted), statistics.median(bare))


@dataclasses.dataclass(frozen=True)
class Medians:
    """Records per second."""

    posted: float
    bare: float

    @property
    def ratio(self) -> float:
        return self.posted / self.bare


async def run(rounds: int, count: int) -> Medians:
    """Measure on a Postgres of its own."""
    with tempfile.TemporaryDirectory(prefix="busbar-posting-") as place:
        running = Platform(Path(place), parts=["postgres-database"])
        running.launch()
        try:
            dsn = running.endpoints["postgres"]
            created = PostgresServer(dsn, running).create_database()
            await asyncio.to_thread(apply_migrations, created.admin_dsn)
            await admit_service(created.admin_dsn, created.billing_dsn)
            admin = await asyncpg.connect(created.admin_dsn)
            async with open_database(created.billing_dsn) as database:
                return await measure(database, admin, rounds, count)
        finally:
            running.shutdown()


def main() -> int:
    """Run it; exit 1 when a target is missed."""
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--records", type=int, default=20_000, help="of one round")
    options = arguments.parse_args()
    found = asyncio.run(run(options.rounds, options.records))
    how = (
        "`tests/benchmarks/posting.py`, part of `./just bench`: usage into the ledger, beside the "
        "rows that posting leaves behind only inserted, over one connection each. Medians of "
        f"{options.rounds} rounds of {options.records:,} records in transactions of {BATCH:,}, "
        f"{TENANTS} tenants with a lease each, {machine()}."
    )
    rows = [
        ["bare batched INSERT", f"{found.bare:,.0f}", "1.00"],
        ["ledger", f"{found.posted:,.0f}", f"{found.ratio:.2f}"],
    ]
    put_table("Posting usage", how, HEAD, rows, written=not options.no_report)
    if found.posted < TARGET_PER_S or found.ratio < TARGET_RATIO:
        sys.stderr.write(
            f"below the target of {TARGET_PER_S:,} records/s and {TARGET_RATIO} of bare\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
