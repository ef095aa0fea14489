"""Billing killed at every await of a posting: each record is charged once all the same."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator

import asyncpg
import kill_points
import pytest
from audits import assert_audit_clean
from billing_parts import WARRANT_KEY, Json, running
from busbar_contracts.billing.v1 import leases_pb2
from busbar_messaging import topology
from busbar_messaging.connection import BusSettings, close, connect
from busbar_messaging.replaying import letters
from busbar_runtime.ports import PortPool
from harness.polling import eventually
from ledger_checks import assert_ledger_holds
from neighbours import Neighbours, neighbours

COST_NANOS = 100_000
CAUGHT_UP_S = 30
POINTS_MIN = 40
"""A posting of a charge, a credit, a void and a dead letter waits at least so often; fewer
points would mean that the test has lost sight of it."""


@pytest.fixture(scope="module")
async def around(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Neighbours]:
    async with neighbours(tmp_path_factory.mktemp("kill-points")) as found:
        yield found


def settings_of(around: Neighbours, user: str) -> BusSettings:
    """How a user of the bus connects."""
    found = around.platform.endpoints
    return BusSettings(
        nats_url=found["nats"], nats_user=user, nats_password=found["nats_credentials"][user]
    )


async def a_lease(around: Neighbours, tenant_id: str) -> str:
    """Ask for credit as a gateway; the lease's id in hex."""
    client = await connect(settings_of(around, "gateway"), "test")
    ask = leases_pb2.LeaseAsk(tenant_id=tenant_id, want_nanos=10**8, need_nanos=10**8)
    call = leases_pb2.LeaseCall(gateway_id="g1", run_id="run-1", asks=[ask])
    answer = await client.request(topology.CREDIT_LEASES, call.SerializeToString(), timeout=5)
    await close(client)
    [grant] = leases_pb2.LeaseReply.FromString(answer.data).grants
    assert grant.granted_nanos >= 10**8
    return grant.lease_id.hex()


async def test_killed_at_every_await_of_a_posting_it_charges_each_record_once(
    around: Neighbours, ports: PortPool
) -> None:
    async with running(around.environment, ports) as billing:
        tenant = await billing.tenant()
        paid = {"amount_nanos": 10**9, "currency": "USD", "reference": "test"}
        await billing.json("POST", f"/tenants/{tenant}/topups", json=paid)
        gift = {
            "amount_nanos": 10**8,
            "currency": "USD",
            "reference": "gift",
            "expires_at": "2099-01-01T00:00:00Z",
        }
        await billing.json("POST", f"/tenants/{tenant}/credits", json=gift)
        lease_id = await a_lease(around, tenant)
    said = {"tenant_id": tenant, "lease_id": lease_id, "warrant_key": WARRANT_KEY.hex()}
    provisioner = {
        "BUSBAR_NATS_USER": "provisioner",
        "BUSBAR_NATS_PASSWORD": around.platform.endpoints["nats_credentials"]["provisioner"],
    }
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        kill_points.__file__,
        json.dumps(said),
        env={**os.environ, **around.environment, **provisioner},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await program.communicate()
    batches: list[Json] = [json.loads(line) for line in out.splitlines()]

    assert program.returncode == 0, "the last one did not pass unharmed"
    assert len(batches) > POINTS_MIN
    async with running(around.environment, ports) as billing:
        database = await around.database()
        await eventually(lambda: nothing_waits(around), within_s=CAUGHT_UP_S, what="all is posted")
        await assert_charged_once(database, tenant, batches)
        await assert_audit_clean(billing)
        await database.close()
    poison = {one["poison"] for one in batches}
    held = [one async for one in letters(around.bus.jetstream(timeout=5))]
    assert len(held) == len(poison)
    assert all(any(bytes.fromhex(one) in letter.payload for one in poison) for letter in held)
    print(f"\nkilled at {len(batches) - 1} points")  # noqa: T201


async def nothing_waits(around: Neighbours) -> bool:
    """Whether everything in USAGE is posted and acknowledged."""
    spec = topology.BILLING_USAGE
    info = await around.bus.jetstream(timeout=5).consumer_info(spec.stream, spec.durable)
    return not info.num_pending and not info.num_ack_pending


async def assert_charged_once(
    database: asyncpg.Connection, tenant: str, batches: list[Json]
) -> None:
    """The ledger holds what was published, and each once."""
    rows = await database.fetch("SELECT request_id FROM usage_records WHERE tenant_id = $1", tenant)
    assert {row[0].hex for row in rows} == {one for batch in batches for one in batch["charged"]}
    rows = await database.fetch("SELECT request_id FROM transfers WHERE kind = 'void'")
    assert sorted(row[0].hex for row in rows) == sorted(batch["voided"] for batch in batches)
    await assert_ledger_holds(database)
    balance = await database.fetchval(
        """
        SELECT sum(b.balance_nanos) FROM account_balances AS b
        INNER JOIN accounts AS a USING (account_id)
        WHERE a.tenant_id = $1
        """,
        tenant,
    )
    assert balance == 10**9 + 10**8 - 2 * COST_NANOS * len(batches)
