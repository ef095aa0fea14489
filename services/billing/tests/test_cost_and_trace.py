"""Measured work is kept for the cost side; a sampled record's posting is part of its trace."""

from __future__ import annotations

import json
import secrets
import time
from datetime import datetime
from uuid import UUID

import asyncpg
import pytest
from billing_parts import WARRANTS, Gateway, Service
from busbar_billing.adapters.bus.usage import UsagePoster
from busbar_billing.adapters.postgres.database import open_database
from busbar_billing.adapters.postgres.journal import Journal
from busbar_billing.adapters.postgres.posting import Ledger
from busbar_billing.adapters.postgres.prices import Prices
from busbar_contracts.gateway.v1 import usage_pb2
from busbar_contracts.node.v1.status_pb2 import WorkMeasured, WorkMeasuredBatch
from busbar_messaging import topology
from busbar_runtime.pytest_plugin import Database
from harness.polling import eventually
from nats.aio.client import Client
from nats.aio.msg import Msg
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from uuid_utils.compat import uuid7

NODE = topology.NodeId("r1", "s1", "n1")


def measured(first: int, count: int, run: str, **changes: object) -> WorkMeasuredBatch:
    records = [
        WorkMeasured(
            request_id=uuid7().bytes,
            attempt=1,
            tenant_id="acme",
            deployment="simple",
            finished=True,
            compute_us=1_000,
            energy_mj=5,
            energy_measured=number % 2 == 0,
            ended_unix_ms=time.time_ns() // 10**6,
        )
        for number in range(count)
    ]
    batch = WorkMeasuredBatch(
        node=NODE.key, agent_run_id=run, first_sequence=first, records=records
    )
    for name, value in changes.items():
        setattr(batch.records[0], name, value)
    return batch


async def test_measured_work_is_stored_once_and_energy_only_where_it_was_measured(
    billing: Service, bus: Client, admin: asyncpg.Connection
) -> None:
    del billing
    run = secrets.token_hex(6)
    first, second = measured(1, 3, run), measured(4, 2, run)
    absurd = measured(6, 1, run, compute_us=2**64 - 1)
    elsewhere, nowhere = measured(7, 1, run), measured(8, 1, run)
    elsewhere.node, nowhere.node = "r1.s2.n1", "a node"
    jetstream = bus.jetstream(timeout=5)
    for batch in (second, elsewhere, first, absurd, nowhere, first, second):
        await jetstream.publish(topology.measured_subject(NODE), batch.SerializeToString())
    query = "SELECT * FROM work_measured WHERE agent_run_id = $1 ORDER BY sequence"

    async def stored() -> list[asyncpg.Record]:
        return await admin.fetch(query, run)

    rows = await eventually(
        stored, within_s=15, what="five rows", until=lambda found: len(found) == 5
    )
    assert [row["sequence"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["energy_mj"] for row in rows] == [5, None, 5, 5, None]
    assert rows[0]["request_id"] == UUID(bytes=first.records[0].request_id)


class Silent:
    """Nobody listens to these events."""

    def usage_posted(self, charged: object) -> None:
        del charged

    def charges_uncovered(self, uncovered: object) -> None:
        del uncovered


async def test_a_sampled_posting_is_a_span_under_the_commit_that_billed_it(
    billing: Service, gateway: Gateway, database: Database, tenant: str
) -> None:
    del billing
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace_id, parent = "ab" * 16, "cd" * 8
    sampled = gateway.record(tenant, traceparent=f"00-{trace_id}-{parent}-01")
    unsampled = gateway.record(tenant, traceparent=f"00-{'ef' * 16}-{parent}-00")
    garbled = gateway.record(tenant, traceparent="00-zz")
    batch = usage_pb2.UsageRecorded(gateway_id="g1", records=[sampled, unsampled, garbled])
    message = Msg(
        _client=None,  # pyright: ignore[reportArgumentType]
        subject="x",
        reply=f"$JS.ACK.USAGE.billing-usage.1.1.1.{time.time_ns()}.0",
        data=batch.SerializeToString(),
    )
    async with open_database(database.billing_dsn) as pool:
        ledger = Ledger(pool, Journal(pool, WARRANTS), Prices(pool, WARRANTS))
        poster = UsagePoster(ledger, Silent(), provider.get_tracer("test"), uuid7)
        refusals = await poster.handle([message])

    [span] = exporter.get_finished_spans()
    shown = json.loads(span.to_json())
    assert refusals == []
    assert shown["name"] == "ledger post"
    assert shown["parent_id"] == f"0x{parent}"
    assert shown["context"]["trace_id"] == f"0x{trace_id}"
    assert shown["attributes"]["busbar.cost_nanos"] == 100_000
    assert shown["attributes"]["busbar.tenant"] == tenant
    assert shown["attributes"]["busbar.request_id"] == f"req_{sampled.request_id.hex()}"
    assert span.end_time is not None
    assert span.start_time is not None
    assert span.end_time > span.start_time


async def test_work_that_brought_nothing_in_is_listed_with_its_reason(
    billing: Service, gateway: Gateway, bus: Client, tenant: str
) -> None:
    run = secrets.token_hex(6)
    charged, failed, voided, again = (gateway.record(tenant) for _ in range(4))
    again.attempt = 2
    batch = measured(1, 5, run)
    asked = (charged, failed, voided, again, again)
    for record, (work, attempt) in zip(
        asked, zip(batch.records, (1, 1, 1, 1, 2), strict=True), strict=True
    ):
        work.request_id, work.attempt, work.tenant_id = record.request_id, attempt, tenant
    await bus.jetstream(timeout=5).publish(
        topology.measured_subject(NODE), batch.SerializeToString()
    )
    await gateway.publish(charged, voided, again, voids=(gateway.void(voided),))
    await billing.posted(tenant, 3)

    path = "/leakage"
    query = {"tenant_id": tenant, "until": "2100-01-01T00:00:00Z"}
    found = await eventually(
        lambda: billing.json("GET", path, params=query),
        within_s=20,
        what="three leaks",
        until=lambda page: len(page["items"]) == 3,
    )
    reasons = {(one["request_id"], one["attempt"]): one["reason"] for one in found["items"]}
    assert reasons == {
        (f"req_{failed.request_id.hex()}", 1): "not_charged",
        (f"req_{voided.request_id.hex()}", 1): "voided",
        (f"req_{again.request_id.hex()}", 1): "other_attempt_charged",
    }
    assert not (await billing.json("GET", path, params={"tenant_id": tenant}))["items"]  # too new
    pages: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        one = await billing.json("GET", path, params={**query, "limit": "1", **cursor})
        pages += [item["request_id"] for item in one["items"]]
        if one["next_cursor"] is None:
            break
        cursor = {"cursor": one["next_cursor"]}
    assert pages == [one["request_id"] for one in found["items"]]
    bad = await billing.call("GET", path, params={**query, "cursor": "AAAA"})
    assert bad.status_code == 422


async def test_energy_is_booked_once_at_the_price_of_its_site(
    billing: Service, bus: Client, admin: asyncpg.Connection
) -> None:
    price = {"site": "r1/s1", "kwh_nanos": 120_000_000}  # 0.12 dollars
    published = await billing.json("POST", "/energy-prices", json=price)
    begins = datetime.fromisoformat(published["effective_from"])
    run = secrets.token_hex(6)
    batch = measured(1, 4, run)  # every other one measured
    for record in batch.records:
        record.energy_mj = 1_800_000  # half a watt-hour
        record.ended_unix_ms = int(begins.timestamp() * 1000) + 5_000
    early = measured(5, 1, run, ended_unix_ms=int(begins.timestamp() * 1000) - 10**9)
    stream = bus.jetstream(timeout=5)
    for payload in (batch, batch, early):
        await stream.publish(topology.measured_subject(NODE), payload.SerializeToString())

    async def booked() -> list[dict[str, int]]:
        rows = await admin.fetch(
            "SELECT a.kind, a.site, p.amount_nanos FROM transfers JOIN postings AS p"
            " USING (transfer_id) JOIN accounts AS a USING (account_id)"
            " WHERE idempotency_key LIKE $1 ORDER BY p.line",
            f"energy_cost:%:{run}:%",
        )
        stored = await admin.fetchval(
            "SELECT count(*) FROM work_measured WHERE agent_run_id = $1", run
        )
        return [dict(row) for row in rows] if stored == 5 else []

    found = await eventually(booked, within_s=20, what="the energy is booked")
    assert found == [
        {"kind": "energy_cost", "site": "r1/s1", "amount_nanos": 120_000},
        {"kind": "energy_payable", "site": None, "amount_nanos": -120_000},
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"site": "r1"},
        {"site": "r1/s1/n1"},
        {"site": "'; DROP TABLE accounts; --"},
        {"site": "r1/\u202e"},
        {"kwh_nanos": 10**12 + 1},
        {"kwh_nanos": -(10**12) - 1},
        {"kwh_nanos": 2**63},
        {"kwh_nanos": 0.1},
        {"currency": "usd"},
        {"effective_from": "2020-01-01T00:00:00Z"},
        {"effective_from": "9999-01-01T00:00:00Z"},
        {"unknown": 1},
    ],
)
async def test_a_bad_energy_price_is_refused(billing: Service, change: dict[str, object]) -> None:
    body = {"site": "r1/s1", "kwh_nanos": 1, **change}
    answer = await billing.call("POST", "/energy-prices", json=body)

    assert answer.status_code == 422, answer.text
