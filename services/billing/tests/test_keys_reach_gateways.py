"""The `keys` bucket: what gateways learn of keys, how fast, and that it heals."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from billing_parts import HMAC_SECRET, Json, Service
from busbar_billing.adapters.bus.mirrored_bucket import MARKER_KEPT
from busbar_billing.domain.keys import key_digest
from busbar_contracts.billing.v1.keys_pb2 import KEY_SCOPE_SERVE, ApiKey
from busbar_messaging import topology
from harness.polling import eventually, quickest_s
from nats.aio.client import Client
from nats.js.errors import KeyNotFoundError, NotFoundError
from nats.js.kv import KeyValue

EFFECTIVE_S = 1.0


def bucket_key(key: str) -> str:
    return key_digest(HMAC_SECRET.encode(), key).hex()


async def entry(bucket: KeyValue, key: str) -> ApiKey | None:
    try:
        found = await bucket.get(bucket_key(key))
    except KeyNotFoundError:
        return None
    return ApiKey.FromString(found.value or b"")


async def new_key(billing: Service, tenant: str, **options: object) -> Json:
    return await billing.json("POST", f"/tenants/{tenant}/keys", json={"name": "n", **options})


async def test_a_key_is_there_when_it_is_shown_and_gone_when_it_is_revoked(
    billing: Service, keys_bucket: KeyValue, tenant: str
) -> None:
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    made = await new_key(
        billing, tenant, deployments=["simple", "echo-fp32"], expires_at=expires.isoformat()
    )
    found = await entry(keys_bucket, made["key"])

    assert made["propagated"]
    assert made["prefix"] == made["key"][:9]
    assert found == ApiKey(
        key_id=made["key_id"],
        tenant_id=tenant,
        deployments=["echo-fp32", "simple"],
        expires_unix_ms=int(expires.timestamp()) * 1000,
        name="n",
        scopes=[KEY_SCOPE_SERVE],
    )
    revoked: list[Json] = []

    async def until_gone() -> float:
        key = await new_key(billing, tenant) if revoked else made
        started = time.monotonic()
        revoked.append(await billing.json("DELETE", f"/keys/{key['key_id']}"))
        assert revoked[-1]["propagated"]
        assert await entry(keys_bucket, key["key"]) is None
        return time.monotonic() - started

    assert await quickest_s(until_gone, under_s=EFFECTIVE_S) < EFFECTIVE_S
    again = await billing.json("DELETE", f"/keys/{made['key_id']}")
    assert again["revoked_at"] == revoked[0]["revoked_at"]


async def test_nothing_of_a_revoked_key_stays_in_the_bucket(
    billing: Service, bus: Client, keys_bucket: KeyValue, tenant: str
) -> None:
    made = await new_key(billing, tenant)
    await billing.json("DELETE", f"/keys/{made['key_id']}")
    subject = f"$KV.{topology.KEYS.name}.{bucket_key(made['key'])}"
    mark = await bus.jetstream().get_last_msg(f"KV_{topology.KEYS.name}", subject)
    kept = await billing.json("GET", f"/keys/{made['key_id']}")
    gone = f"$KV.{topology.KEYS.name}.gone"
    await keys_bucket.purge("gone", msg_ttl=1)

    async def pruned() -> bool:
        try:
            await bus.jetstream().get_last_msg(f"KV_{topology.KEYS.name}", gone)
        except NotFoundError:
            return True
        return False

    # The server takes marks away when their time is over.
    await eventually(pruned, within_s=30, what="the mark is gone")
    assert (mark.headers or {})["Nats-TTL"] == str(int(MARKER_KEPT.total_seconds()))
    assert kept["revoked_at"]


async def test_the_key_itself_is_nowhere_but_in_the_first_answer(
    billing: Service, keys_bucket: KeyValue, tenant: str
) -> None:
    made = await new_key(billing, tenant)
    listed = await billing.json("GET", f"/tenants/{tenant}/keys")
    value = (await keys_bucket.get(bucket_key(made["key"]))).value or b""

    assert [one["key_id"] for one in listed["items"]] == [made["key_id"]]
    assert made["key"] not in str(listed)
    assert made["key"].encode() not in value


@pytest.mark.parametrize(
    "options",
    [
        {"expires_at": "2020-01-01T00:00:00Z"},
        {"expires_at": "tomorrow"},
        {"expires_at": "2030-01-01T00:00:00"},
        {"deployments": ["Not A Name"]},
        {"deployments": "simple"},
        {"deployments": ["a"] * 1_001},
        {"scopes": []},
        {"scopes": ["everything"]},
    ],
)
async def test_a_bad_key_is_refused(billing: Service, tenant: str, options: Json) -> None:
    answer = await billing.call("POST", f"/tenants/{tenant}/keys", json={"name": "n", **options})

    assert answer.status_code == 422, answer.text
    assert (await billing.json("GET", f"/tenants/{tenant}/keys"))["items"] == []


async def test_what_differs_from_the_database_is_put_right_at_the_next_start(
    billing: Service, keys_bucket: KeyValue, tenant: str
) -> None:
    missing, changed, revoked = [await new_key(billing, tenant) for _ in range(3)]
    await billing.json("DELETE", f"/keys/{revoked['key_id']}")
    await billing.end()
    await keys_bucket.delete(bucket_key(missing["key"]))
    await keys_bucket.put(bucket_key(changed["key"]), b"")
    forged = ApiKey(key_id="key_forged", tenant_id=tenant).SerializeToString()
    await keys_bucket.put(bucket_key("bb_forged"), forged)
    await keys_bucket.put(bucket_key(revoked["key"]), forged)
    await billing.start()

    async def bucket() -> list[str | None]:
        found = [await entry(keys_bucket, one["key"]) for one in (missing, changed, revoked)]
        found.append(await entry(keys_bucket, "bb_forged"))
        return [one.key_id if one else None for one in found]

    expected = [missing["key_id"], changed["key_id"], None, None]
    found = await eventually(
        bucket, within_s=30, what="the bucket is right", until=lambda found: found == expected
    )

    assert found == expected
