"""Stripe's events, really signed, at the running service: what is paid is credited once."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
import stripe
from billing_parts import STRIPE_SECRET, Json, Service

CENTS = 10**7
PATH = "/webhooks/stripe"


def event(kind: str, body: Json, event_id: str | None = None) -> bytes:
    document = {
        "id": event_id or f"evt_{uuid4().hex}",
        "object": "event",
        "api_version": "2026-01-01",
        "created": int(time.time()),
        "type": kind,
        "data": {"object": body},
    }
    return json.dumps(document).encode()


def checkout(tenant_id: str, intent: str, cents: int = 2_500, **changes: Any) -> bytes:
    body = {
        "id": f"cs_{uuid4().hex}",
        "object": "checkout.session",
        "mode": "payment",
        "payment_status": "paid",
        "payment_intent": intent,
        "amount_total": cents,
        "currency": "usd",
        "client_reference_id": tenant_id,
        "metadata": {"busbar_tenant": tenant_id},
    }
    return event("checkout.session.completed", body | changes)


def refund(intent: str, cents: int) -> bytes:
    body = {"object": "charge", "payment_intent": intent, "amount_refunded": cents}
    return event("charge.refunded", body | {"currency": "usd"})


def dispute(intent: str, cents: int, status: str) -> bytes:
    body = {"object": "dispute", "payment_intent": intent, "amount": cents, "status": status}
    return event("charge.dispute.closed", body | {"currency": "usd"})


async def send(billing: Service, payload: bytes, **signing: Any) -> httpx.Response:
    secret = signing.pop("secret", STRIPE_SECRET)
    signature = stripe.WebhookSignature.generate_signature_header(
        payload.decode(), secret, **signing
    )
    return await post(billing, payload, signature)


async def post(billing: Service, payload: bytes, signature: str | None) -> httpx.Response:
    headers = {} if signature is None else {b"stripe-signature": signature.encode("latin-1")}
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=10) as provider:
        return await provider.post(billing.account_url + PATH, content=payload, headers=headers)


async def outcome(billing: Service, payload: bytes) -> str:
    answer = await send(billing, payload)
    assert answer.status_code == 200, answer.text
    return answer.json()["outcome"]


@pytest.fixture
def intent() -> str:
    return f"pi_{uuid4().hex}"


async def test_a_paid_checkout_is_credited_once_however_often_it_is_told(
    billing: Service, tenant: str, intent: str
) -> None:
    payload = checkout(tenant, intent)
    answers = await asyncio.gather(*[outcome(billing, payload) for _ in range(5)])
    another_event = await outcome(billing, checkout(tenant, intent))

    assert sorted(answers) == ["posted", *["repeated"] * 4]
    assert another_event == "nothing new"  # the same payment: nothing is left to post
    assert await billing.balance(tenant) == 2_500 * CENTS
    [transfer] = await billing.transfers(tenant_id=tenant)
    assert transfer["kind"] == "top_up"
    assert transfer["reason"] == f"stripe:{intent}"


async def test_an_event_waits_only_for_another_that_is_to_come(
    billing: Service, tenant: str, intent: str
) -> None:
    early = await outcome(billing, refund(intent, 500))
    unknown = await outcome(billing, checkout("", intent))
    paid = await outcome(billing, checkout(tenant, intent))
    older = [await outcome(billing, refund(intent, cents)) for cents in (1_000, 700)]
    listed = await billing.json("GET", "/payments/events", params={"limit": 1})

    assert (early, unknown, paid) == ("waiting", "waiting", "posted")
    assert older == ["posted", "nothing new"]
    assert listed["items"][0]["outcome"] == "nothing new"
    assert await billing.balance(tenant) == 1_500 * CENTS


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
async def test_events_in_any_order_end_in_the_same_balance(
    billing: Service, tenant: str, intent: str, order: tuple[int, ...]
) -> None:
    events = [checkout(tenant, intent), refund(intent, 500), refund(intent, 1_000)]
    for number in order:
        await outcome(billing, events[number])

    assert await billing.balance(tenant) == 1_500 * CENTS
    transfers = await billing.transfers(tenant_id=tenant)
    assert all(sum(p["amount_nanos"] for p in t["postings"]) == 0 for t in transfers)


async def test_a_lost_dispute_takes_the_money_back_and_a_won_one_does_not(
    billing: Service, tenant: str, intent: str
) -> None:
    await outcome(billing, checkout(tenant, intent))
    assert await outcome(billing, dispute(intent, 2_500, "won")) == "stored"
    assert await billing.balance(tenant) == 2_500 * CENTS

    assert await outcome(billing, dispute(intent, 2_500, "lost")) == "posted"
    assert await billing.balance(tenant) == 0


@pytest.mark.parametrize("case", ["none", "other secret", "old", "changed", "nonsense"])
async def test_what_is_not_authentic_changes_nothing(
    billing: Service, tenant: str, intent: str, case: str
) -> None:
    payload = checkout(tenant, intent)
    match case:
        case "none":
            answer = await post(billing, payload, None)
        case "other secret":
            answer = await send(billing, payload, secret="whsec_of_somebody_else")
        case "old":
            answer = await send(billing, payload, timestamp=int(time.time()) - 3_600)
        case "changed":
            sign = stripe.WebhookSignature.generate_signature_header
            signature = sign(payload.decode(), STRIPE_SECRET)
            answer = await post(billing, payload.replace(b"2500", b"9900"), signature)
        case _:
            answer = await post(billing, payload, "t=now,v1=\xff")

    assert answer.status_code == 422
    assert answer.json()["error"]["message"]
    assert await billing.balance(tenant) == 0
    assert await outcome(billing, payload) == "posted"  # it was not taken for a repeat


@pytest.mark.parametrize(
    "body",
    [b"not json", b"{}", b"[]", b'{"id":"evt_x","type":"charge.refunded"}', b"\xff\xfe"],
    ids=["text", "empty", "list", "no data", "not utf-8"],
)
async def test_what_cannot_be_read_is_refused_clearly(billing: Service, body: bytes) -> None:
    text = body.decode("latin-1")
    signature = stripe.WebhookSignature.generate_signature_header(text, STRIPE_SECRET)
    answer = await post(billing, body, signature)

    assert answer.status_code in {400, 422}
    message = answer.json()["error"]["message"]
    assert message.startswith("the event cannot be read: ")
    assert "Error(" not in message


def saying(value: str) -> bytes:
    """An event with some JSON in it that says nothing to us."""
    whole = event("payout.created", {"object": "payout", "a": 0})
    return whole.replace(b'"a": 0', b'"a": %b' % value.encode())


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 2_000,
        b"[" * 20_000,
        saying("[" * 2_000 + "]" * 2_000),
        saying('{"a":' * 2_000 + "0" + "}" * 2_000),
        *(saying(number) for number in ("1e999", "-1e999", "NaN", "Infinity", "-Infinity")),
        saying("9" * 5_000),
    ],
    ids=["open", "wide open", "lists", "objects", "inf", "-inf", "nan", "Inf", "-Inf", "digits"],
)
async def test_what_no_database_keeps_is_refused_clearly(billing: Service, body: bytes) -> None:
    answer = await send(billing, body)

    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith("the event cannot be read: ")


@pytest.mark.parametrize("depth", [100, 300, 600, 900])
async def test_an_event_is_taken_or_refused_however_deep_it_is(
    billing: Service, depth: int
) -> None:
    answer = await send(billing, saying("[" * depth + "]" * depth))

    assert answer.status_code in {200, 422}


@pytest.mark.parametrize(
    "amount",
    ["12", 1.5, 2500.0, True, None, [2500], 10**30, 10**4_290],
    ids=["text", "part", "float", "true", "null", "list", "absurd", "unspeakable"],
)
async def test_an_amount_is_a_whole_number_of_minor_units(
    billing: Service, tenant: str, intent: str, amount: Any
) -> None:
    answers = [
        await send(billing, checkout(tenant, intent, amount_total=amount)),
        await send(billing, refund(intent, amount)),
        await send(billing, dispute(intent, amount, "lost")),
    ]

    assert [answer.status_code for answer in answers] == [422] * 3
    said = [answer.json()["error"]["message"] for answer in answers]
    assert all(one.startswith("the event cannot be read: ") for one in said)
    assert "amount_total" in said[0]
    assert await billing.balance(tenant) == 0
    assert await outcome(billing, checkout(tenant, intent)) == "posted"


@pytest.mark.parametrize(
    "odd",
    ["us", "usd ", "us\x00", "\ud800", "", 5, None, [], {"a": 1}],
    ids=["short", "blank", "nul", "surrogate", "empty", "number", "null", "list", "object"],
)
async def test_whatever_stands_where_a_word_belongs_is_kept_or_refused(
    billing: Service, tenant: str, intent: str, odd: Any
) -> None:
    body = {"currency": "usd", "payment_intent": intent, "amount_refunded": 500}
    changes: list[Json] = [
        {"currency": odd},
        {"payment_intent": odd},
        {"mode": odd},
        {"payment_status": odd},
        {"metadata": odd},
        {"metadata": {"busbar_tenant": odd}, "client_reference_id": odd},
    ]
    answers = [await send(billing, checkout(tenant, intent, **change)) for change in changes]
    answers += [await send(billing, event("charge.refunded", body | one)) for one in changes[:2]]
    answers.append(await send(billing, event("charge.dispute.closed", {"status": odd})))

    assert all(answer.status_code in {200, 422} for answer in answers), answers
    assert await billing.balance(tenant) in {0, 2_000 * CENTS, 2_500 * CENTS}


async def test_an_unknown_event_is_stored(billing: Service) -> None:
    payload = event("payout.reconciliation_completed", {"object": "payout"}, "evt_unknown_1")

    assert await outcome(billing, payload) == "stored"
    listed = await billing.json("GET", "/payments/events", params={"limit": 1000})
    found = [one for one in listed["items"] if one["event_id"] == "evt_unknown_1"]
    assert [one["outcome"] for one in found] == ["stored"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"currency": "eur"}, "pays in USD"),
        ({"metadata": {"busbar_tenant": "nobody'; DROP TABLE tenants"}}, "no tenant"),
        ({"amount_total": -5}, "a payment is of"),
        ({"amount_total": 10**15}, "a payment is of"),
    ],
    ids=["currency", "tenant", "negative", "absurd"],
)
async def test_an_event_that_cannot_be_right_is_kept_with_the_reason(
    billing: Service, tenant: str, intent: str, changes: Json, reason: str
) -> None:
    before = await billing.metric("busbar_billing_payments_refused_total")
    answer = await outcome(billing, checkout(tenant, intent, **changes))

    assert reason in answer
    assert await billing.balance(tenant) == 0
    assert await billing.metric("busbar_billing_payments_refused_total") == before + 1


RAISED = "UPDATE payments SET paid_nanos = paid_nanos + 7000000 WHERE reference = $1"
LOWERED = """
    UPDATE payments SET refunded_nanos = 0, posted_returned_nanos = 0 WHERE reference = $1
"""


@pytest.mark.parametrize(
    "lied", [(RAISED, "top_up"), (LOWERED, "payment_returned")], ids=["raised", "lowered"]
)
async def test_an_event_of_a_payment_that_the_ledger_has_otherwise_is_kept_with_the_reason(
    billing: Service, tenant: str, intent: str, admin: asyncpg.Connection, lied: tuple[str, str]
) -> None:
    """An answer of 500 would have it sent again for days, and nobody told why."""
    harm, kind = lied
    before = await billing.metric("busbar_billing_payments_refused_total")
    for payload in (checkout(tenant, intent), refund(intent, 500)):
        assert await outcome(billing, payload) == "posted"
    await admin.execute(harm, f"stripe:{intent}")

    answer = await outcome(billing, refund(intent, 500 if kind == "payment_returned" else 700))

    assert answer.startswith(f"payment stripe:{intent} is not as the ledger has it")
    assert f"{kind}:" in answer
    assert await billing.balance(tenant) == 2_000 * CENTS
    assert await billing.metric("busbar_billing_payments_refused_total") == before + 1


async def test_a_payment_that_an_operator_has_posted_by_hand_is_not_posted_again(
    billing: Service, tenant: str, intent: str
) -> None:
    wanted = {"amount_nanos": 2_500 * CENTS, "currency": "USD", "reference": f"stripe:{intent}"}
    await billing.json("POST", f"/tenants/{tenant}/topups", json=wanted)

    answer = await outcome(billing, checkout(tenant, intent))

    assert "is posted already" in answer
    assert await billing.balance(tenant) == 2_500 * CENTS


@pytest.mark.parametrize("text", ["a\x00b", "\ud800", "\u202e'; DROP TABLE payments; --"])
async def test_text_that_a_database_may_not_like_is_kept_or_refused(
    billing: Service, tenant: str, intent: str, text: str
) -> None:
    """Whatever a payer typed: an answer of 5xx would have it sent again for days."""
    answers = [
        await send(billing, checkout(tenant, intent, customer_details={"name": text})),
        await send(billing, checkout(text, intent, metadata={}, client_reference_id=text)),
        await send(billing, event(text, {"object": "payout"})),
        await send(billing, event("payout.created", {"object": "payout"}, f"evt_{text}{intent}")),
        await send(billing, checkout(tenant, f"pi_{text}{intent}")),
    ]

    assert all(answer.status_code in {200, 422} for answer in answers), answers
    assert await billing.balance(tenant) in {0, 2_500 * CENTS, 5_000 * CENTS}


async def test_a_repeated_id_with_another_content_changes_nothing(
    billing: Service, tenant: str, intent: str
) -> None:
    first = checkout(tenant, intent)
    forged = json.loads(first)
    forged["data"]["object"] |= {"amount_total": 990_000, "payment_intent": f"{intent}2"}

    assert await outcome(billing, first) == "posted"
    assert await outcome(billing, json.dumps(forged).encode()) == "repeated"
    assert await billing.balance(tenant) == 2_500 * CENTS


async def test_a_body_without_bounds_is_refused(billing: Service) -> None:
    answer = await post(billing, b"x" * 20_000_000, "t=1,v1=x")

    assert answer.status_code == 413


async def test_an_unpaid_checkout_waits_for_its_money(
    billing: Service, tenant: str, intent: str
) -> None:
    assert await outcome(billing, checkout(tenant, intent, payment_status="unpaid")) == "stored"
    assert await billing.balance(tenant) == 0


async def test_a_checkout_needs_a_whole_number_of_cents_and_a_web_address(
    billing: Service, tenant: str
) -> None:
    good = {
        "amount_nanos": 10 * 10**9,
        "success_url": "https://shop.example/ok",
        "cancel_url": "https://shop.example/no",
    }
    path = f"/tenants/{tenant}/checkouts"
    for change in (
        {"amount_nanos": 1},
        {"amount_nanos": -(10**9)},
        {"success_url": "javascript:alert(1)"},
        {"cancel_url": "x" * 3_000},
    ):
        answer = await billing.call("POST", path, json=good | change)
        assert answer.status_code == 422, answer.text
    missing = await billing.call("POST", "/tenants/ten_nobody/checkouts", json=good)
    assert missing.status_code == 404
