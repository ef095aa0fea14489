"""Billing while its database or its bus goes away: nothing lost, nothing twice, back by itself."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg
import pytest
from billing_parts import Gateway, Service, running
from busbar_billing.migrate import admit_service, apply_migrations
from busbar_messaging import provision, topology
from busbar_messaging.connection import close, connect
from busbar_runtime.platform import Platform
from busbar_runtime.ports import PortPool
from harness.polling import eventually
from nats.aio.client import Client

BACK_S = 10
COST_NANOS = 100_000


@dataclass(frozen=True)
class Parts:
    """A billing of its own, whose neighbours may be hurt."""

    platform: Platform
    billing: Service
    gateway: Gateway
    bus: Client


@pytest.fixture(scope="module")
async def parts(tmp_path_factory: pytest.TempPathFactory, ports: PortPool) -> AsyncIterator[Parts]:
    place = tmp_path_factory.mktemp("outages")
    async with Platform(place, parts=["nats", "postgres-database"]) as platform:
        found = platform.endpoints
        secrets = platform.secrets
        admin_dsn = found["postgres"]
        at = admin_dsn.rpartition("@")[2]
        billing_dsn = f"postgresql://busbar_billing:{secrets.postgres_billing}@{at}"
        apply_migrations(admin_dsn)
        await admit_service(admin_dsn, billing_dsn)
        settings = provision.ProvisionSettings(
            nats_url=found["nats"],
            nats_user="provisioner",
            nats_password=found["nats_credentials"]["provisioner"],
        )
        bus = await connect(settings, "outages")
        await provision.apply(bus, settings)
        environment = {
            "BUSBAR_NATS_URL": found["nats"],
            "BUSBAR_NATS_USER": "billing",
            "BUSBAR_NATS_PASSWORD": found["nats_credentials"]["billing"],
            "BUSBAR_POSTGRES_DSN": billing_dsn,
        }
        async with running(environment, ports) as billing:
            yield Parts(platform, billing, Gateway(bus.jetstream(timeout=5)), bus)
        await close(bus)


GATE = 4_711
CLOSE_GATE = f"""
    CREATE FUNCTION wait_at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock({GATE});
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER wait_at_commit AFTER INSERT ON usage_records
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_at_commit();
    SELECT pg_advisory_lock({GATE});
"""
OPEN_GATE = f"SELECT pg_advisory_unlock({GATE})"
AT_GATE = f"SELECT count(*) FROM pg_locks WHERE objid = {GATE} AND NOT granted"


async def test_killed_between_commit_and_acknowledgement_it_charges_once(parts: Parts) -> None:
    tenant = await parts.billing.tenant()
    owner = await asyncpg.connect(parts.platform.endpoints["postgres"])
    await owner.execute(CLOSE_GATE)
    await parts.gateway.publish(*[parts.gateway.record(tenant) for _ in range(3)])

    async def committing() -> int:
        return await owner.fetchval(AT_GATE)

    await eventually(committing, within_s=BACK_S, what="a commit begins")
    await parts.billing.end(signal.SIGKILL)
    await owner.execute(OPEN_GATE)

    async def committed() -> int:
        query = "SELECT count(*) FROM usage_records WHERE tenant_id = $1"
        return await owner.fetchval(query, tenant)

    await eventually(committed, within_s=BACK_S, what="the commit", until=lambda n: n == 3)
    await parts.billing.start()

    async def duplicates() -> float:
        return await parts.billing.metric("busbar_billing_duplicates_total")

    await eventually(duplicates, within_s=2 * BACK_S, what="redelivery", until=lambda n: n >= 3)
    assert await parts.billing.balance(tenant) == -3 * COST_NANOS
    assert len(await parts.billing.transfers(tenant_id=tenant)) == 3
    await owner.execute("DROP TRIGGER wait_at_commit ON usage_records")
    await owner.close()


async def redeliveries(bus: Client) -> int:
    """Messages that are waiting for another delivery."""
    spec = topology.BILLING_USAGE
    info = await bus.jetstream(timeout=5).consumer_info(spec.stream, spec.durable)
    return info.num_redelivered or 0


async def test_a_database_that_goes_and_comes_back_costs_nothing(parts: Parts) -> None:
    tenant = await parts.billing.tenant()
    for _ in range(10):
        await parts.gateway.publish(parts.gateway.record(tenant))
    await parts.platform.kill("postgres", signal.SIGKILL)
    for _ in range(10):
        await parts.gateway.publish(parts.gateway.record(tenant))
    await parts.platform.wait_ready("postgres")
    await parts.gateway.publish(parts.gateway.record(tenant))

    async def usage() -> int:
        answer = await parts.billing.call("GET", "/usage", params={"tenant_id": tenant})
        return len(answer.json()["items"]) if answer.is_success else -1

    await eventually(usage, within_s=BACK_S, what="21 charges", until=lambda n: n >= 21)
    assert await parts.billing.balance(tenant) == -21 * COST_NANOS
    assert len(await parts.billing.transfers(tenant_id=tenant)) == 21


async def test_without_a_database_it_says_so_and_pulls_nothing(parts: Parts) -> None:
    tenant = await parts.billing.tenant()
    await parts.platform.stop("postgres")

    async def unready() -> bool:
        return not await parts.billing.is_ready()

    await eventually(unready, within_s=BACK_S, what="billing is not ready")
    answer = await parts.billing.call("GET", "/tenants")
    await parts.gateway.publish(parts.gateway.record(tenant))
    await parts.platform.start("postgres")
    started = time.monotonic()

    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    await eventually(parts.billing.is_ready, within_s=BACK_S, what="billing is ready")
    await parts.billing.posted(tenant, 1)
    assert time.monotonic() - started < BACK_S
    assert await redeliveries(parts.bus) <= 1


async def test_a_bus_that_is_restarted_is_used_again_and_revocations_catch_up(
    parts: Parts,
) -> None:
    tenant = await parts.billing.tenant()
    key = await parts.billing.json("POST", f"/tenants/{tenant}/keys", json={"name": "n"})
    await parts.platform.stop("nats")
    revoked = await parts.billing.json("DELETE", f"/keys/{key['key_id']}")
    late = await parts.billing.json("POST", f"/tenants/{tenant}/keys", json={"name": "late"})
    await parts.platform.start("nats")
    keys = await parts.bus.jetstream(timeout=5).key_value(topology.KEYS.name)

    async def in_bucket() -> set[str]:
        try:
            return set(await keys.keys())
        except Exception:  # noqa: BLE001 - the bus is on its way back
            return set()

    assert not revoked["propagated"]
    assert not late["propagated"]
    assert await eventually(
        in_bucket, within_s=BACK_S, what="one key", until=lambda found: len(found) == 1
    )
    await parts.gateway.publish(parts.gateway.record(tenant))
    await parts.billing.posted(tenant, 1)
