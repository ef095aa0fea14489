"""The `tenants` bucket: what gateways learn of tenants, how fast, and that both buckets heal."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Awaitable, Callable

import asyncpg
import pytest
from billing_parts import Json, Service
from busbar_contracts.billing.v1.keys_pb2 import ApiKey
from busbar_contracts.billing.v1.tenants_pb2 import (
    PRIORITY_BAND_BATCH,
    PRIORITY_BAND_INTERACTIVE,
    PRIORITY_BAND_STANDARD,
    TenantPolicy,
)
from busbar_messaging import topology
from harness.polling import TRIES, eventually, quickest_s
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import KeyNotFoundError, NoKeysError
from nats.js.kv import KeyValue

EFFECTIVE_S = 1.0
MANY_KEYS = 10_000
RESTORED_S = 150.0
HEALED_S = 20.0


@pytest.fixture
async def policies(bus: Client) -> KeyValue:
    return await bus.jetstream(timeout=5).key_value(topology.TENANTS.name)


async def policy(bucket: KeyValue, tenant: str) -> TenantPolicy | None:
    try:
        found = await bucket.get(tenant)
    except KeyNotFoundError:
        return None
    return TenantPolicy.FromString(found.value or b"")


async def plan(billing: Service, tenant: str, **limits: object) -> Json:
    name = f"p-{tenant[-12:]}"
    await billing.json("PUT", f"/plans/{name}", json={"name": "Small", **limits})
    return await billing.json("PUT", f"/tenants/{tenant}/terms", json={"plan_id": name})


async def test_a_tenant_is_known_with_its_plan_overrides_and_suspension(
    billing: Service, policies: KeyValue, tenant: str
) -> None:
    unlimited = await policy(policies, tenant)
    started = time.monotonic()
    terms = await plan(billing, tenant, requests_per_minute=60, band="interactive", weight=3)
    planned = await policy(policies, tenant)
    body = {"plan_id": terms["plan_id"], "overrides": {"requests_per_minute": 0, "band": "batch"}}
    await billing.json("PUT", f"/tenants/{tenant}/terms", json=body)
    overridden = await policy(policies, tenant)
    path = f"/tenants/{tenant}/suspend"
    await billing.json("POST", path, json={"reason": "invoice 7 is unpaid"})
    suspended = await policy(policies, tenant)
    await billing.json("POST", f"/tenants/{tenant}/resume")
    resumed = await policy(policies, tenant)
    took_s = time.monotonic() - started

    assert unlimited == TenantPolicy(
        tenant_id=tenant, currency="USD", band=PRIORITY_BAND_STANDARD, weight=1
    )
    assert terms["propagated"]
    assert planned is not None
    assert overridden is not None
    assert suspended is not None
    assert resumed is not None
    assert (planned.plan_id, planned.requests_per_minute) == (terms["plan_id"], 60)
    assert (planned.band, planned.weight) == (PRIORITY_BAND_INTERACTIVE, 3)
    assert (overridden.requests_per_minute, overridden.band) == (0, PRIORITY_BAND_BATCH)
    assert suspended.suspended_reason == "invoice 7 is unpaid"
    assert resumed == overridden
    assert took_s < 4 * EFFECTIVE_S


async def test_a_changed_plan_reaches_every_tenant_that_has_it(
    billing: Service, policies: KeyValue
) -> None:
    tenants = [await billing.tenant() for _ in range(5)]
    name = (await plan(billing, tenants[0], tokens_per_minute=10))["plan_id"]
    for tenant in tenants[1:]:
        await billing.json("PUT", f"/tenants/{tenant}/terms", json={"plan_id": name})
    limits = itertools.count(20)

    async def until_known() -> float:
        limit = next(limits)
        started = time.monotonic()
        body = {"name": "Small", "tokens_per_minute": limit}
        changed = await billing.json("PUT", f"/plans/{name}", json=body)
        found = [await policy(policies, tenant) for tenant in tenants]
        assert changed["propagated"]
        assert [one.tokens_per_minute for one in found if one] == [limit] * len(tenants)
        return time.monotonic() - started

    assert await quickest_s(until_known, under_s=EFFECTIVE_S) < EFFECTIVE_S


async def test_a_rotated_key_is_accepted_with_both_secrets_until_the_old_one_ends(
    billing: Service, keys_bucket: KeyValue, tenant: str
) -> None:
    async def entries(count: int) -> dict[str, ApiKey]:
        return await eventually(
            lambda: entries_of(keys_bucket, tenant),
            within_s=EFFECTIVE_S,
            what=f"{count} entries are listed",
            until=lambda found: len(found) == count,
        )

    made = await billing.json("POST", f"/tenants/{tenant}/keys", json={"name": "n"})
    [first] = await entries(1)
    until = "2999-01-01T00:00:00Z"
    too_long = await billing.call(
        "POST", f"/keys/{made['key_id']}/rotate", json={"old_valid_until": until}
    )
    soon_ms = int(time.time() * 1000) + 3_600_000
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(soon_ms // 1000))
    rotated = await billing.json(
        "POST", f"/keys/{made['key_id']}/rotate", json={"old_valid_until": soon}
    )
    both = await entries(2)
    cut_short = await billing.call(
        "POST", f"/keys/{made['key_id']}/rotate", json={"old_valid_until": soon}
    )
    assert cut_short.status_code == 409
    assert f"{made['prefix']}..., is accepted until {soon}" in cut_short.text
    assert await entries(2) == both
    again = await billing.json("POST", f"/keys/{made['key_id']}/rotate", json={})
    last = await entries(1)
    await billing.json("DELETE", f"/keys/{made['key_id']}")

    assert too_long.status_code == 422
    assert rotated["key"] != made["key"]
    assert rotated["previous_secret"] == {"prefix": made["prefix"], "valid_until": soon}
    assert {one.key_id for one in both.values()} == {made["key_id"]}
    assert both[first].expires_unix_ms == soon_ms // 1000 * 1000
    assert len(both) == 2
    assert len(last) == 1
    assert first not in last
    assert again["key_id"] == made["key_id"]
    assert await entries(0) == {}
    late = await billing.call("POST", f"/keys/{made['key_id']}/rotate", json={})
    assert late.status_code == 409


async def test_ten_thousand_keys_are_bounded_listed_and_restored_after_their_policies(
    billing: Service, bus: Client, policies: KeyValue, admin: asyncpg.Connection, tenant: str
) -> None:
    await plan(billing, tenant, max_in_flight=9)
    await insert_keys(admin, tenant, MANY_KEYS)
    refused = await billing.call("POST", f"/tenants/{tenant}/keys", json={"name": "one more"})
    page = await billing.json("GET", f"/tenants/{tenant}/keys", params={"limit": 1000})
    written: list[str] = []

    async def note(message: Msg) -> None:
        if not message.headers:  # a key that is revoked leaves a marker, and at once
            written.append(message.subject.removeprefix("$KV."))

    await billing.end()
    for bucket in (topology.KEYS, topology.TENANTS):
        await bus.jetstream(timeout=10).purge_stream(f"KV_{bucket.name}")
    watching = await bus.subscribe("$KV.*.>", cb=note, pending_msgs_limit=10 * MANY_KEYS)
    await billing.start()
    doomed = iter(reversed(page["items"]))

    async def until_revoked() -> float:
        began = time.monotonic()
        revoked = await billing.json("DELETE", f"/keys/{next(doomed)['key_id']}")
        assert revoked["propagated"]
        return time.monotonic() - began

    revoked_s = await quickest_s(until_revoked, under_s=EFFECTIVE_S)
    await eventually(
        async_count(written, f"{topology.KEYS.name}."),
        within_s=RESTORED_S,
        what="every key is back",
        until=lambda found: found >= MANY_KEYS - TRIES,  # so many were revoked at most
    )
    await watching.unsubscribe()
    found = await policy(policies, tenant)
    await admin.execute("UPDATE api_keys SET revoked_at = now() WHERE tenant_id = $1", tenant)

    assert revoked_s < EFFECTIVE_S  # and does not wait until all the others are written
    assert refused.status_code == 422
    assert "10000 keys" in refused.json()["error"]["message"]
    assert len(page["items"]) == 1000
    assert page["next_cursor"]
    assert found is not None
    assert found.max_in_flight == 9
    first_key = next(n for n, one in enumerate(written) if one.startswith(topology.KEYS.name))
    assert f"{topology.TENANTS.name}.{tenant}" in written[:first_key]


def async_count(written: list[str], begin: str) -> Callable[[], Awaitable[int]]:
    async def count() -> int:
        return sum(one.startswith(begin) for one in written)

    return count


async def test_a_wiped_bucket_heals_while_billing_runs(
    billing: Service, bus: Client, keys_bucket: KeyValue, tenant: str
) -> None:
    made = await billing.json("POST", f"/tenants/{tenant}/keys", json={"name": "n"})
    for bucket in (topology.KEYS, topology.TENANTS):
        await bus.jetstream(timeout=10).purge_stream(f"KV_{bucket.name}")

    async def there() -> bool:
        return made["key_id"] in [
            key.key_id for key in (await entries_of(keys_bucket, tenant)).values()
        ]

    await eventually(there, within_s=HEALED_S, what="the key is back")

    assert [key.tenant_id for key in (await entries_of(keys_bucket, tenant)).values()] == [tenant]


async def entries_of(bucket: KeyValue, tenant: str) -> dict[str, ApiKey]:
    """What gateways know of a tenant's keys."""
    found: dict[str, ApiKey] = {}
    try:
        names = await bucket.keys()
    except NoKeysError:
        return found
    for name in names:
        key = ApiKey.FromString((await bucket.get(name)).value or b"")
        if key.tenant_id == tenant:
            found[name] = key
    return found


async def insert_keys(admin: asyncpg.Connection, tenant: str, count: int) -> None:
    """Keys of nobody's secret, all at once."""
    rows = [
        (f"key_{number:032x}", tenant, f"k{number}", hashlib.sha256(b"%d" % number).digest())
        for number in range(count)
    ]
    await admin.executemany(
        "INSERT INTO api_keys (key_id, tenant_id, name, key_hmac, prefix)"
        " VALUES ($1, $2, $3, $4, 'bb_abcdef')",
        rows,
    )
