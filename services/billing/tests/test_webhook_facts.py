"""Each fact that tenants can be told is told, from where it becomes true."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import stripe
from billing_parts import STRIPE_SECRET, Gateway, Json, Service
from busbar_contracts.billing.v1 import leases_pb2
from busbar_contracts.billing.v1.events_pb2 import BalanceExhausted
from busbar_messaging import topology
from harness.polling import eventually
from nats.aio.client import Client
from nats.aio.msg import Msg
from webhook_receiver import Receiver, receiving

PAID_NANOS = 1_000_000
MILLION = 1_000_000


@pytest.fixture
async def receiver(billing: Service, tenant: str) -> AsyncIterator[Receiver]:
    """Where the tenant is told everything but what is low."""
    async with receiving() as made:
        types = [
            *("balance.exhausted", "budget.reached", "payment.succeeded", "payment.returned"),
            *("credit.granted", "charge.refunded", "statement.issued", "credit_note.issued"),
        ]
        body = {"url": made.url, "event_types": types}
        await billing.json("POST", f"/tenants/{tenant}/webhooks", json=body)
        yield made


async def top_up(billing: Service, tenant: str, amount_nanos: int = PAID_NANOS) -> None:
    body = {"amount_nanos": amount_nanos, "currency": "USD", "reference": uuid4().hex}
    await billing.json("POST", f"/tenants/{tenant}/topups", json=body)


async def told(receiver: Receiver, kind: str, count: int = 1) -> Json:
    """The message of a type that came as number `count`, once it came."""

    async def so_far() -> list[Json]:
        found = [json.loads(got.body) for got in receiver.received]
        return [one["data"] for one in found if one["type"] == kind]

    found = await eventually(
        so_far, within_s=20, what=f"{kind} is told", until=lambda them: len(them) >= count
    )
    return found[count - 1]


async def test_credit_refunds_and_statements_are_told(
    billing: Service, tenant: str, gateway: Gateway, receiver: Receiver, admin: asyncpg.Connection
) -> None:
    last_month = (datetime.now(UTC).replace(day=1) - timedelta(days=1)).replace(day=1)
    aged = "UPDATE tenants SET created_at = $2 WHERE tenant_id = $1"
    await admin.execute(aged, tenant, last_month)
    gift = {"amount_nanos": 50_000, "currency": "USD", "reference": "gift"}
    gift["expires_at"] = "2090-01-01T00:00:00Z"
    await billing.json("POST", f"/tenants/{tenant}/credits", json=gift)
    await top_up(billing, tenant)
    record = gateway.record(tenant, admitted_unix_ns=int(last_month.timestamp()) * 10**9 + 10**15)
    await gateway.publish(record)
    await billing.posted(tenant, 1)
    request_id = f"req_{record.request_id.hex()}"
    back = {"amount_nanos": 20_000, "reason": "slow", "reference": "r1"}
    await billing.json("POST", f"/usage/{request_id}/refunds", json=back)
    month = {"month": f"{last_month:%Y-%m}"}
    closed = await billing.json("POST", f"/tenants/{tenant}/statements", json=month)

    granted = await told(receiver, "credit.granted")
    refunded = await told(receiver, "charge.refunded")
    issued = await told(receiver, "statement.issued")
    assert granted["amount_nanos"] == 50_000
    assert (refunded["amount_nanos"], refunded["request_id"]) == (20_000, request_id)
    assert (issued["number"], issued["month"]) == (closed["number"], month["month"])
    assert isinstance(issued["closing_nanos"], int)

    path = f"/statements/{closed['number']}/credit-notes"
    wanted = {"amount_nanos": 7_000, "reason": "late", "reference": "n1"}
    note = [await billing.json("POST", path, json=wanted) for _ in range(2)][-1]
    corrected = await told(receiver, "credit_note.issued")
    assert (corrected["number"], corrected["corrects"]) == (note["number"], closed["number"])
    assert (corrected["amount_nanos"], corrected["reason"]) == (7_000, "late")
    assert (corrected["month"], corrected["tenant_id"]) == (month["month"], tenant)
    kinds = [json.loads(got.body)["type"] for got in receiver.received]
    assert kinds.count("credit_note.issued") == 1


async def test_a_payment_through_the_provider_and_its_return_are_told_once(
    billing: Service, tenant: str, receiver: Receiver
) -> None:
    intent = f"pi_{uuid4().hex}"
    paid: Json = {
        "object": "checkout.session",
        "mode": "payment",
        "payment_status": "paid",
        "payment_intent": intent,
        "amount_total": 2_500,
        "currency": "usd",
        "client_reference_id": tenant,
    }
    returned = {
        "object": "charge",
        "payment_intent": intent,
        "amount_refunded": 500,
        "currency": "usd",
    }
    for kind, body in (
        ("checkout.session.completed", paid),
        ("checkout.session.completed", paid),
        ("charge.refunded", returned),
    ):
        await tell_of_payment(billing, kind, body)
    back = await told(receiver, "payment.returned")
    came = await told(receiver, "payment.succeeded")

    assert (came["amount_nanos"], came["reference"]) == (25 * 10**9, f"stripe:{intent}")
    assert back["amount_nanos"] == -5 * 10**9
    assert len(receiver.received) == 2


async def tell_of_payment(billing: Service, kind: str, body: Json) -> None:
    document: dict[str, Any] = {
        "id": f"evt_{uuid4().hex}",
        "object": "event",
        "created": 1,
        "type": kind,
        "data": {"object": body},
    }
    text = json.dumps(document)
    signature = stripe.WebhookSignature.generate_signature_header(text, STRIPE_SECRET)
    url = f"{billing.account_url}/webhooks/stripe"
    answer = await billing.client.post(url, content=text, headers={"stripe-signature": signature})
    assert answer.status_code == 200, answer.text


async def test_a_budget_that_is_reached_is_told(
    billing: Service, tenant: str, gateway: Gateway, receiver: Receiver
) -> None:
    terms = {"overrides": {"monthly_budget_nanos": 110_000, "budget_kind": "alert"}}
    await billing.json("PUT", f"/tenants/{tenant}/terms", json=terms)
    await gateway.publish(gateway.record(tenant))
    budget = await told(receiver, "budget.reached")

    assert (budget["percent"], budget["spent_nanos"]) == (80, 100_000)
    assert budget["hard"] is False


async def ask(bus: Client, tenant: str, need_nanos: int, refused_below_nanos: int) -> None:
    """Ask for more than there is, and say of whom was refused."""
    wanted = leases_pb2.LeaseAsk(
        tenant_id=tenant,
        need_nanos=need_nanos,
        want_nanos=need_nanos,
        refused_below_nanos=refused_below_nanos,
    )
    call = leases_pb2.LeaseCall(gateway_id="g-hooks", run_id="run-1", asks=[wanted])
    reply = await bus.request(topology.CREDIT_LEASES, call.SerializeToString(), timeout=5)
    [grant] = leases_pb2.LeaseReply.FromString(reply.data).grants
    assert grant.refusal == leases_pb2.LEASE_REFUSAL_BALANCE


async def low_below(billing: Service, tenant: str, nanos: int) -> None:
    body = {"low_balance_nanos": nanos}
    await billing.json("PUT", f"/tenants/{tenant}/balance/threshold", json=body)


async def test_a_balance_is_exhausted_when_a_request_is_refused_and_not_when_it_settles_for_less(
    billing: Service, tenant: str, gateway: Gateway, receiver: Receiver, bus: Client
) -> None:
    events: list[BalanceExhausted] = []

    async def note(message: Msg) -> None:
        event = BalanceExhausted.FromString(message.data)
        events.extend([event] if event.tenant_id == tenant else [])

    await bus.subscribe(topology.event_subject("billing", "balance_exhausted"), cb=note)
    async with receiving() as of_low:
        body = {"url": of_low.url, "event_types": ["balance.low"]}
        await billing.json("POST", f"/tenants/{tenant}/webhooks", json=body)
        await top_up(billing, tenant)
        await low_below(billing, tenant, PAID_NANOS - 50_000)
        await ask(bus, tenant, 3 * PAID_NANOS, refused_below_nanos=0)
        await gateway.publish(gateway.record(tenant))
        low = await told(of_low, "balance.low")  # looked at after that ask
    for _ in range(3):
        await ask(bus, tenant, 3 * PAID_NANOS, refused_below_nanos=900_001)
    exhausted = await told(receiver, "balance.exhausted")

    assert (low["balance_nanos"], low["threshold_nanos"]) == (900_000, 950_000)
    assert exhausted["balance_nanos"] == 900_000
    assert [one.balance_nanos for one in events] == [900_000]


async def test_who_is_told_of_a_low_balance_only_is_told_of_one_that_was_spent_at_once(
    billing: Service, tenant: str, gateway: Gateway, receiver: Receiver
) -> None:
    async with receiving() as of_low:
        body = {"url": of_low.url, "event_types": ["balance.low"]}
        await billing.json("POST", f"/tenants/{tenant}/webhooks", json=body)
        await low_below(billing, tenant, 50_000)
        await top_up(billing, tenant, 100_000)
        await gateway.publish(gateway.record(tenant))
        low = await told(of_low, "balance.low")
        exhausted = await told(receiver, "balance.exhausted")

    assert (low["balance_nanos"], low["threshold_nanos"]) == (0, 50_000)
    assert exhausted["balance_nanos"] == 0


async def test_what_is_exhausted_again_after_a_top_up_is_told_again(
    billing: Service, tenant: str, gateway: Gateway, receiver: Receiver, bus: Client
) -> None:
    """Smaller requests were served in between: the top-up does not reach what was there when it
    was told."""
    await low_below(billing, tenant, 20 * MILLION)
    async with receiving() as of_low:
        body = {"url": of_low.url, "event_types": ["balance.low"]}
        await billing.json("POST", f"/tenants/{tenant}/webhooks", json=body)
        await top_up(billing, tenant, 50 * MILLION)
        await ask(bus, tenant, 60 * MILLION, refused_below_nanos=60 * MILLION)
        first = await told(receiver, "balance.exhausted")
        await gateway.publish(gateway.record(tenant, input_tokens=490_000))
        low = await told(of_low, "balance.low")
    await top_up(billing, tenant, 30 * MILLION)
    await gateway.publish(gateway.record(tenant))
    await eventually(
        lambda: billing.json("GET", f"/tenants/{tenant}/balance/threshold"),
        within_s=20,
        what="the balance is fine again",
        until=lambda found: found["level"] == "fine",
    )
    await ask(bus, tenant, 60 * MILLION, refused_below_nanos=60 * MILLION)
    second = await told(receiver, "balance.exhausted", count=2)

    assert (first["balance_nanos"], low["balance_nanos"]) == (50 * MILLION, MILLION)
    assert second["balance_nanos"] == 31 * MILLION - 100_000
