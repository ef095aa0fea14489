"""Usage by minute, hour and day: right, complete, and quick over a year."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from billing_parts import Gateway, Json, Service
from busbar_billing.adapters.postgres.database import Database as Pool
from busbar_billing.adapters.postgres.database import open_database
from busbar_billing.adapters.postgres.rollups import Filters, Rollups, page_arguments, page_query
from busbar_billing.domain.rollups import Bucket, GroupBy, Window, checked_window
from busbar_billing.migrate import admit_service, apply_migrations
from busbar_errors import Rejected
from busbar_runtime.pytest_plugin import Database, PostgresServer
from harness.polling import eventually
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 11, 21, 10, 17, 31, tzinfo=UTC)
YEAR_STARTS = datetime(2025, 11, 1, tzinfo=UTC)
RECORDS = 1_200_000

# One tenant's year, busy once in an hour: 6 keys, 3 models, 2 projects.
FILL_A_YEAR = """
    INSERT INTO usage_records (
        request_id, tenant_id, key_id, deployment, price_class, api, outcome, admitted_at,
        finished_at, input_tokens, output_tokens, request_bytes, response_bytes, compute_us, node,
        attempt, gateway_id, trace_id, price_version, rated_class, amount_nanos, currency,
        transfer_id, project_id
    )
    SELECT
        lpad(to_hex(n), 32, '0')::uuid, 'busy', 'key_' || n % 6, 'model-' || n % 3,
        'chat-small', 'openai.chat', 'completed', made.at, made.at,
        10, 5, 100, 200, 1000, 'r1.s1.n1', 1, 'g1', '', 1, 'chat-small', 7, 'USD',
        lpad(to_hex(n), 32, '0')::uuid, 'prj_' || n % 2
    FROM generate_series($2::int, $3::int) AS n,
    LATERAL (
        SELECT date_bin('1 hour', $1::timestamptz + interval '366 days' * (n::float8 / $4), $1)
    ) AS made (at)
"""


def test_the_default_is_as_much_as_may_be_asked_for() -> None:
    hours = checked_window(Bucket.HOUR, None, None, NOW)

    assert hours.until == datetime(2026, 11, 21, 11, tzinfo=UTC)
    assert hours.until - hours.since == timedelta(days=31)


@given(
    st.sampled_from(Bucket),
    st.integers(1_600_000_000, 1_900_000_000).map(lambda at: datetime.fromtimestamp(at, UTC)),
    st.timedeltas(timedelta(microseconds=1), timedelta(days=400)),
)
def test_a_window_is_of_whole_buckets_around_what_was_asked_for(
    bucket: Bucket, since: datetime, length: timedelta
) -> None:
    until = since + length
    if length > bucket.longest + bucket.length:
        with pytest.raises(Rejected, match="at most"):
            checked_window(bucket, since, until, NOW)
        return
    if length > bucket.longest:
        return
    window = checked_window(bucket, since, until, NOW)

    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert (window.since - epoch) % bucket.length == (window.until - epoch) % bucket.length
    assert (window.since - epoch) % bucket.length == timedelta()
    assert timedelta() <= since - window.since < bucket.length
    assert timedelta() <= window.until - until < bucket.length


@pytest.mark.parametrize(
    ("since", "until", "why"),
    [
        (NOW, NOW, "before"),
        (NOW, NOW - timedelta(days=1), "before"),
        (NOW + timedelta(days=2), None, "future"),
        (NOW - timedelta(days=2), NOW, "at most 1 days"),
    ],
)
def test_a_range_without_sense_is_refused(since: datetime, until: datetime, why: str) -> None:
    with pytest.raises(Rejected, match=why):
        checked_window(Bucket.MINUTE, since, until, NOW)


async def buckets(billing: Service, tenant: str, **params: Any) -> list[Json]:
    """All buckets, page by page, never more than asked for on one."""
    found: list[Json] = []
    cursor: str | None = None
    while True:
        asked = {"tenant_id": tenant, **params, **({"cursor": cursor} if cursor else {})}
        answer = await billing.json("GET", "/usage/buckets", params=asked)
        assert len(answer["items"]) <= params.get("limit", 100)
        found += answer["items"]
        cursor = answer["next_cursor"]
        if cursor is None:
            return found


async def test_buckets_say_what_was_posted_and_not_taken_back(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    keys = [await key_of(billing, tenant) for _ in range(3)]
    records = [
        gateway.record(
            tenant,
            key_id=keys[n % 3],
            project_id="prj_a" if n < 4 else "",
            deployment=f"m-{n % 2}",
            input_tokens=1_000 * (n + 1),
        )
        for n in range(12)
    ]
    gone = gateway.record(tenant, key_id=keys[0], deployment="m-0", input_tokens=5)
    await gateway.publish(*records, gone)
    await gateway.publish(*records)
    await gateway.publish(voids=(gateway.void(gone),))
    await billing.posted(tenant, 13)
    await eventually(
        lambda: billing.transfers(request_id=f"req_{gone.request_id.hex()}"),
        within_s=20,
        what="the charge is taken back",
        until=lambda found: len(found) == 2,
    )

    for bucket in Bucket:
        [whole] = await buckets(billing, tenant, bucket=bucket.value)
        assert (whole["requests"], whole["voided_requests"]) == (12, 1)
        assert whole["input_tokens"] == sum(one.input_tokens for one in records)
        assert whole["amount_nanos"] == 100 * whole["input_tokens"]
        assert whole["group"] is None
    by_key: defaultdict[str, int] = defaultdict(int)
    for record in records:
        by_key[record.key_id] += record.input_tokens
    paged = await buckets(billing, tenant, bucket="minute", group_by="key", limit=1)
    assert {one["group"]: one["input_tokens"] for one in paged} == by_key
    projects = await buckets(billing, tenant, group_by="project")
    assert {one["group"]: one["requests"] for one in projects} == {"": 8, "prj_a": 4}
    [only] = await buckets(billing, tenant, group_by="model", model="m-1", key_id=keys[1])
    assert (only["group"], only["requests"]) == ("m-1", 2)


async def key_of(billing: Service, tenant: str) -> str:
    """The id of a new key."""
    made = await billing.json("POST", f"/tenants/{tenant}/keys", json={"name": "n"})
    return made["key_id"]


async def test_what_cannot_be_asked_is_refused(billing: Service, tenant: str) -> None:
    for wrong, status in [
        ({"tenant_id": "nobody"}, 404),
        ({"bucket": "week"}, 422),
        ({"group_by": "key_id; DROP TABLE tenants"}, 422),
        ({"bucket": "minute", "since": "2026-01-01T00:00:00Z"}, 422),
        ({"since": "yesterday"}, 422),
        ({"limit": "0"}, 422),
        ({"cursor": "bm9wZQ"}, 422),
        ({"cursor": "OTk5OTk5OTk5OTk5OTk5OTk5OTk6eA"}, 422),
    ]:
        params = {"tenant_id": tenant, **wrong}
        answer = await billing.call("GET", "/usage/buckets", params=params)
        assert answer.status_code == status, wrong
        assert answer.json()["error"]["message"]


@pytest.fixture(scope="module")
async def year(postgres_server: PostgresServer) -> AsyncIterator[Database]:
    """A database with a million records of one tenant, spread over a year."""
    created = postgres_server.create_database()
    apply_migrations(created.admin_dsn)
    await admit_service(created.admin_dsn, created.billing_dsn)
    owner = await asyncpg.connect(created.admin_dsn)
    await owner.execute(
        "INSERT INTO tenants (tenant_id, name, currency) VALUES ('busy', 'Busy', 'USD')"
    )
    # Keys checked row by row would take most of the time; only what is tested here stays on.
    await owner.execute("ALTER TABLE usage_records DISABLE TRIGGER ALL")
    await owner.execute("ALTER TABLE usage_records ENABLE TRIGGER usage_records_project_rollups")
    step = RECORDS // 10
    for first in range(0, RECORDS, step):
        await owner.execute(FILL_A_YEAR, YEAR_STARTS, first, first + step - 1, float(RECORDS))
    await owner.execute("ANALYZE usage_records, usage_rollups")
    yield created
    await owner.close()


@pytest.fixture
async def pool(year: Database) -> AsyncIterator[Pool]:
    async with open_database(year.billing_dsn) as opened:
        yield opened


WINDOWS = [
    Window(Bucket.DAY, YEAR_STARTS, YEAR_STARTS + timedelta(days=366)),
    Window(Bucket.HOUR, YEAR_STARTS + timedelta(days=200), YEAR_STARTS + timedelta(days=231)),
    Window(Bucket.MINUTE, YEAR_STARTS + timedelta(days=300), YEAR_STARTS + timedelta(days=301)),
]


@pytest.mark.parametrize("group_by", GroupBy)
@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: window.bucket.value)
async def test_a_year_is_answered_from_the_rollups_by_their_index(
    pool: Pool, window: Window, group_by: GroupBy
) -> None:
    arguments = page_arguments("busy", window, Filters(), 1_001, None)
    async with pool.connection() as connection:
        explain = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + page_query(group_by)
        [plan] = json.loads(await connection.fetchval(explain, *arguments))
    said = json.dumps(plan)

    assert "usage_records" not in said
    assert "Seq Scan" not in said
    assert "usage_rollups_pkey" in said
    # The records are 40,000 pages; an answer touches a small part of what is kept about them.
    assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 5_000, said


async def test_a_year_adds_up_whichever_way_it_is_asked(pool: Pool) -> None:
    rollups = Rollups(pool)
    for group_by in GroupBy:
        days = await rollups.page("busy", WINDOWS[0], group_by, Filters(), limit=10_000)
        assert sum(one.requests for one in days) == RECORDS
        assert sum(one.amount_nanos for one in days) == 7 * RECORDS
    one_key = await rollups.page(
        "busy", WINDOWS[0], GroupBy.KEY, Filters(key_id="key_3"), limit=10_000
    )
    assert {one.name for one in one_key} == {"key_3"}
    assert sum(one.requests for one in one_key) == RECORDS // 6


async def test_the_service_cannot_write_rollups(as_service: asyncpg.Connection) -> None:
    for change in (
        "DELETE FROM usage_rollups",
        "UPDATE usage_rollups SET amount_nanos = 0",
        "INSERT INTO usage_rollups SELECT * FROM usage_rollups",
        "TRUNCATE usage_rollups",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await as_service.execute(change)


async def test_a_tenant_without_usage_has_no_buckets(billing: Service, tenant: str) -> None:
    assert await buckets(billing, tenant) == []
