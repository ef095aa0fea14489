"""Webhooks of the running service, at a receiver that misbehaves."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from billing_parts import Gateway, Json, Service
from busbar_contracts.billing.v1.events_pb2 import WebhookDisabled
from busbar_messaging.topology import event_subject
from harness.polling import eventually
from nats.aio.client import Client
from nats.aio.msg import Msg
from standardwebhooks import Webhook
from webhook_receiver import Received, Receiver, receiving

SOON_S = 30
NANOS = 10**9


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


async def endpoint(billing: Service, tenant: str, url: str, **wanted: Any) -> Json:
    body = {"url": url, "event_types": ["payment.succeeded"], **wanted}
    return await billing.json("POST", f"/tenants/{tenant}/webhooks", json=body)


async def top_up(billing: Service, tenant: str, amount_nanos: int = NANOS) -> str:
    reference = uuid4().hex
    body = {"amount_nanos": amount_nanos, "currency": "USD", "reference": reference}
    await billing.json("POST", f"/tenants/{tenant}/topups", json=body)
    return reference


async def deliveries(billing: Service, tenant: str, made: Json) -> list[Json]:
    path = f"/tenants/{tenant}/webhooks/{made['endpoint_id']}/deliveries"
    return (await billing.json("GET", path))["items"]


async def in_state(billing: Service, tenant: str, made: Json, state: str, attempts: int) -> Json:
    """The newest delivery, once it is in a state after so many attempts."""

    async def newest() -> Json:
        return (await deliveries(billing, tenant, made) or [{"state": "", "attempts": -1}])[0]

    return await eventually(
        newest,
        within_s=SOON_S,
        what=f"{state} after {attempts} attempts",
        until=lambda one: (
            (one["state"], one["attempts"]) == (state, attempts)
            and (state != "pending" or bool(one["last_error"]))
        ),
    )


async def hasten(admin: asyncpg.Connection, tenant: str) -> None:
    """As if the pause before the next attempt were over."""
    query = "UPDATE webhook_deliveries SET next_attempt_at = now() WHERE tenant_id = $1"
    await admin.execute(query, tenant)


def verified(got: Received, secret: str) -> Json:
    return Webhook(secret).verify(got.body, got.headers)


async def test_a_payment_is_told_signed_and_only_to_whom_it_may_concern(
    billing: Service, tenant: str, receiver: Receiver
) -> None:
    made = await endpoint(billing, tenant, receiver.url, event_types=["payment.succeeded"])
    other = await endpoint(billing, tenant, receiver.url + "/low", event_types=["balance.low"])
    await endpoint(billing, await billing.tenant(), receiver.url + "/another")
    reference = await top_up(billing, tenant, 7 * NANOS)
    [got] = await receiver.got(1)
    told = verified(got, made["secret"])
    delivery = await in_state(billing, tenant, made, "delivered", 1)

    assert got.path == "/hook"
    assert told["type"] == "payment.succeeded"
    assert datetime.now(UTC) - datetime.fromisoformat(told["timestamp"]) < timedelta(minutes=1)
    assert told["data"]["amount_nanos"] == 7 * NANOS
    assert told["data"]["reference"] == reference
    assert delivery["message_id"] == got.headers["webhook-id"]
    assert delivery["last_status"] == 204
    assert await deliveries(billing, tenant, other) == []
    shown = await billing.json("GET", f"/tenants/{tenant}/webhooks")
    assert made["secret"] not in json.dumps(shown)
    assert {one["endpoint_id"] for one in shown["items"]} == {
        made["endpoint_id"],
        other["endpoint_id"],
    }


async def test_what_fails_is_tried_again_with_the_same_id_and_a_redirect_is_not_followed(
    billing: Service, tenant: str, receiver: Receiver, admin: asyncpg.Connection
) -> None:
    made = await endpoint(billing, tenant, receiver.url)
    receiver.location = receiver.url + "/elsewhere"
    receiver.answers = [500, "close", 307, 200]
    path = f"/tenants/{tenant}/webhooks/{made['endpoint_id']}"
    await billing.json("POST", f"{path}/ping")
    errors: list[str] = []
    for attempt in (1, 2, 3):
        errors.append((await in_state(billing, tenant, made, "pending", attempt))["last_error"])
        await hasten(admin, tenant)
    failing = await billing.json("GET", path)
    await in_state(billing, tenant, made, "delivered", 4)
    well = await billing.json("GET", path)

    assert errors[0] == "status 500"
    assert "disconnected" in errors[1]
    assert errors[2] == "status 307: redirects are not followed"
    assert {got.path for got in receiver.received} == {"/hook"}
    assert len({got.headers["webhook-id"] for got in receiver.received}) == 1
    assert all(verified(got, made["secret"])["type"] == "ping" for got in receiver.received)
    assert failing["failing_since"]
    assert well["failing_since"] is None


async def test_killed_between_delivery_and_its_note_it_is_delivered_again_with_the_same_id(
    billing: Service, tenant: str, receiver: Receiver, admin: asyncpg.Connection
) -> None:
    made = await endpoint(billing, tenant, receiver.url)
    receiver.answers = ["hang"]
    await top_up(billing, tenant)
    [first] = await receiver.got(1)
    await billing.end(signal.SIGKILL)
    await hasten(admin, tenant)
    await billing.start()
    await in_state(billing, tenant, made, "delivered", 2)
    again = receiver.received[1]

    assert again.headers["webhook-id"] == first.headers["webhook-id"]
    assert again.body == first.body
    assert len(receiver.received) == 2


async def test_a_rotated_secret_signs_beside_the_old_one_until_that_ends(
    billing: Service, tenant: str, receiver: Receiver
) -> None:
    made = await endpoint(billing, tenant, receiver.url)
    path = f"/tenants/{tenant}/webhooks/{made['endpoint_id']}"
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    both = await billing.json("POST", f"{path}/rotate", json={"old_valid_until": until})
    cut_short = await billing.call("POST", f"{path}/rotate", json={"old_valid_until": until})
    await billing.json("POST", f"{path}/ping")
    [overlapping] = await receiver.got(1)
    last = await billing.json("POST", f"{path}/rotate", json={})
    await billing.json("POST", f"{path}/ping")
    alone = (await receiver.got(2))[1]

    assert cut_short.status_code == 409
    assert f"are signed with the secret before, too, until {until[:19]}Z" in cut_short.text
    assert len({made["secret"], both["secret"], last["secret"]}) == 3
    assert verified(overlapping, made["secret"]) == verified(overlapping, both["secret"])
    assert len(alone.headers["webhook-signature"].split(" ")) == 1
    assert verified(alone, last["secret"])["type"] == "ping"


async def test_one_that_is_gone_is_disabled_and_the_others_are_told(
    billing: Service, tenant: str, receiver: Receiver, bus: Client
) -> None:
    told: list[WebhookDisabled] = []

    async def note(message: Msg) -> None:
        event = WebhookDisabled.FromString(message.data)
        told.extend([event] if event.tenant_id == tenant else [])

    async def so_far() -> list[WebhookDisabled]:
        return told

    await bus.subscribe(event_subject("billing", "webhook_disabled"), cb=note)
    await bus.flush()
    async with receiving() as gone:
        gone.answers = [410]
        made = await endpoint(billing, tenant, gone.url, event_types=["payment.succeeded"])
        other = await endpoint(billing, tenant, receiver.url, event_types=["webhook.disabled"])
        await top_up(billing, tenant)
        [got] = await receiver.got(1)
        path = f"/tenants/{tenant}/webhooks/{made['endpoint_id']}"
        disabled = await billing.json("GET", path)
        pinged = await billing.call("POST", f"{path}/ping")
        await top_up(billing, tenant)
        body = {"url": gone.url, "event_types": ["payment.succeeded"], "enabled": True}
        enabled = await billing.json("PUT", path, json=body)
        [failed] = await deliveries(billing, tenant, made)
        again = f"{path}/deliveries/{failed['delivery_id']}/redeliver"
        await billing.json("POST", again)
        await in_state(billing, tenant, made, "delivered", 1)

    assert verified(got, other["secret"])["data"] == {
        "endpoint_id": made["endpoint_id"],
        "reason": "it answered 410 Gone",
    }
    assert (disabled["enabled"], disabled["disabled_reason"]) == (False, "it answered 410 Gone")
    assert pinged.status_code == 409
    assert (enabled["enabled"], enabled["failing_since"]) == (True, None)
    assert failed["state"] == "failed"
    assert [one.headers["webhook-id"] for one in gone.received] == [failed["message_id"]] * 2
    [event] = await eventually(so_far, within_s=SOON_S, what="the event is heard")
    assert event.endpoint_id == made["endpoint_id"]


async def test_one_that_takes_nothing_for_days_is_disabled_with_all_that_waits(
    billing: Service, tenant: str, receiver: Receiver, admin: asyncpg.Connection
) -> None:
    made = await endpoint(billing, tenant, receiver.url)
    receiver.answers = [500] * 4
    await top_up(billing, tenant)
    await in_state(billing, tenant, made, "pending", 1)
    query = "UPDATE webhook_deliveries SET attempts = 10 WHERE tenant_id = $1"
    await admin.execute(query, tenant)
    await hasten(admin, tenant)
    given_up = await in_state(billing, tenant, made, "failed", 11)
    path = f"/tenants/{tenant}/webhooks/{made['endpoint_id']}"
    still = await billing.json("GET", path)
    await top_up(billing, tenant)
    await in_state(billing, tenant, made, "pending", 1)
    await admin.execute(query, tenant)
    query = "UPDATE webhook_endpoints SET failing_since = now() - interval '4 days'"
    await admin.execute(query + " WHERE tenant_id = $1", tenant)
    await hasten(admin, tenant)
    await in_state(billing, tenant, made, "failed", 11)
    disabled = await billing.json("GET", path)

    assert given_up["last_error"] == "status 500"
    assert still["enabled"]
    assert disabled["disabled_reason"] == "nothing was delivered for 4 days"


async def test_what_is_anothers_does_not_exist(
    billing: Service, tenant: str, receiver: Receiver
) -> None:
    made = await endpoint(billing, tenant, receiver.url)
    await billing.json("POST", f"/tenants/{tenant}/webhooks/{made['endpoint_id']}/ping")
    delivery = await in_state(billing, tenant, made, "delivered", 1)
    path = f"/tenants/{await billing.tenant()}/webhooks/{made['endpoint_id']}"
    answers = [
        await billing.call("GET", path),
        await billing.call("PUT", path, json={"url": receiver.url}),
        await billing.call("POST", f"{path}/rotate", json={}),
        await billing.call("POST", f"{path}/ping"),
        await billing.call("GET", f"{path}/deliveries"),
        await billing.call("POST", f"{path}/deliveries/{delivery['delivery_id']}/redeliver"),
        await billing.call("DELETE", path),
        await billing.call("GET", "/tenants/nobody/webhooks"),
    ]

    assert {answer.status_code for answer in answers} == {404}


async def test_there_are_bounds(
    billing: Service, tenant: str, receiver: Receiver, admin: asyncpg.Connection
) -> None:
    made = await asyncio.gather(*[endpoint(billing, tenant, receiver.url) for _ in range(10)])
    wanted = {"url": receiver.url}
    eleventh = await billing.call("POST", f"/tenants/{tenant}/webhooks", json=wanted)
    await admin.execute(
        """
        WITH m AS (
            INSERT INTO webhook_messages (tenant_id, type, payload)
            SELECT $1, 'ping', '{}' FROM generate_series(1, 100) RETURNING message_id
        )
        INSERT INTO webhook_deliveries (message_id, endpoint_id, tenant_id, next_attempt_at)
        SELECT message_id, $2, $1, now() + interval '1 hour' FROM m
        """,
        tenant,
        made[0]["endpoint_id"],
    )
    path = f"/tenants/{tenant}/webhooks/{made[0]['endpoint_id']}"
    pinged = await billing.call("POST", f"{path}/ping")
    first = await billing.json("GET", f"{path}/deliveries", params={"limit": 60})
    rest = {"limit": 60, "cursor": first["next_cursor"]}
    second = await billing.json("GET", f"{path}/deliveries", params=rest)
    gone = await billing.call("DELETE", path)

    assert eleventh.status_code == 422
    assert pinged.status_code == 409
    assert (len(first["items"]), len(second["items"])) == (60, 40)
    assert second["next_cursor"] is None
    assert gone.status_code == 204
    left = "SELECT count(*) FROM webhook_deliveries WHERE tenant_id = $1"
    assert await admin.fetchval(left, tenant) == 0


@pytest.mark.parametrize(
    "wanted",
    [
        {"url": "https://10.0.0.1/"},
        {"url": "https://user:word@example.com/"},
        {"url": "https://2130706433/"},
        {"url": "file:///etc/passwd"},
        {"url": "https://example.com/", "event_types": ["ping"]},
        {"url": "https://example.com/", "event_types": ["no.such"]},
        {"url": "https://example.com/", "description": "a\u202eb"},
        {"url": "https://example.com/", "tenant_id": "other"},
        {"url": 7},
        {},
    ],
)
async def test_bad_input_is_refused(billing: Service, tenant: str, wanted: Json) -> None:
    answer = await billing.call("POST", f"/tenants/{tenant}/webhooks", json=wanted)

    assert answer.status_code == 422, answer.text
    assert (await billing.json("GET", f"/tenants/{tenant}/webhooks"))["items"] == []


async def test_a_low_and_an_exhausted_balance_are_told_once_until_there_is_money_again(
    billing: Service, tenant: str, receiver: Receiver, gateway: Gateway
) -> None:
    await endpoint(billing, tenant, receiver.url, event_types=["balance.low", "balance.exhausted"])
    threshold = f"/tenants/{tenant}/balance/threshold"
    default = await billing.json("GET", threshold)
    own = await billing.json("PUT", threshold, json={"low_balance_nanos": 350_000})

    async def told(count: int) -> list[tuple[str, int]]:
        bodies = [json.loads(got.body) for got in await receiver.got(count)]
        return [(body["type"], body["data"]["balance_nanos"]) for body in bodies]

    async def charge(count: int) -> None:
        before = len(await billing.usage(tenant))
        await gateway.publish(*[gateway.record(tenant) for _ in range(count)])
        await billing.posted(tenant, before + count)

    await top_up(billing, tenant, 500_000)
    await charge(2)
    assert await told(1) == [("balance.low", 300_000)]
    await charge(1)
    await charge(2)
    assert (await told(2))[1] == ("balance.exhausted", 0)
    await charge(1)
    await top_up(billing, tenant, 50_000_000)
    await charge(1)
    await eventually(
        lambda: billing.json("GET", threshold),
        within_s=SOON_S,
        what="the balance is fine again",
        until=lambda found: found["level"] == "fine",
    )
    await charge(1)
    await billing.json("PUT", threshold, json={"low_balance_nanos": 60_000_000})
    await charge(1)
    types = [one[0] for one in await told(3)]

    assert (default["low_balance_nanos"], default["is_default"]) == (5 * NANOS, True)
    assert (own["low_balance_nanos"], own["is_default"]) == (350_000, False)
    assert types == ["balance.low", "balance.exhausted", "balance.low"]


async def test_a_threshold_must_make_sense(billing: Service, tenant: str) -> None:
    path = f"/tenants/{tenant}/balance/threshold"
    for wrong in (-1, 10**16, "5", 1.5, True):
        answer = await billing.call("PUT", path, json={"low_balance_nanos": wrong})
        assert answer.status_code == 422, wrong
    assert (await billing.call("GET", "/tenants/nobody/balance/threshold")).status_code == 404
