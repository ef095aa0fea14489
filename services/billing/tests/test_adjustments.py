"""Promotional credit, refunds and corrections: what people do to a tenant's money."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from billing_parts import WARRANTS, Gateway, Json, Service
from busbar_billing.adapters.postgres.adjustments import Adjustments
from busbar_billing.adapters.postgres.database import open_database
from busbar_billing.adapters.postgres.journal import Journal
from busbar_billing.adapters.postgres.leases import Leases
from busbar_billing.domain.leases import Ask
from busbar_billing.usecases.adjustments import expire_credits
from busbar_billing.usecases.leases import Asker, answer_asks
from busbar_runtime.pytest_plugin import Database
from harness.polling import eventually
from uuid_utils.compat import uuid7

COST_NANOS = 100_000
PAID = {"amount_nanos": 10**6, "currency": "USD", "reference": "paid"}
WHY = {"reason": "by mistake"}


def in_days(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat()


def far_ns(days: float) -> int:
    return int((datetime.now(UTC) + timedelta(days=days)).timestamp() * 1e9)


@pytest.fixture
async def adjustments(database: Database) -> AsyncIterator[Adjustments]:
    async with open_database(database.billing_dsn) as opened:
        yield Adjustments(opened, Journal(opened, WARRANTS))


async def give(billing: Service, tenant: str, nanos: int, days: float, reference: str) -> Json:
    body = {
        "amount_nanos": nanos,
        "currency": "USD",
        "reference": reference,
        "expires_at": in_days(days),
    }
    return await billing.json("POST", f"/tenants/{tenant}/credits", json=body)


async def unspent(billing: Service, tenant: str) -> dict[str, int]:
    page = await billing.json("GET", f"/tenants/{tenant}/credits")
    return {one["reference"]: one["unspent_nanos"] for one in page["items"]}


async def use(billing: Service, gateway: Gateway, tenant: str, count: int = 1) -> list[str]:
    """Requests of 100,000 nanos each, posted."""
    records = [gateway.record(tenant) for _ in range(count)]
    posted = len(await billing.usage(tenant))
    await gateway.publish(*records)
    await billing.posted(tenant, posted + count)
    return [f"req_{one.request_id.hex()}" for one in records]


async def test_a_credit_is_given_once_for_each_reference(billing: Service, tenant: str) -> None:
    body: Json = {
        "amount_nanos": 7,
        "currency": "USD",
        "reference": "welcome",
        "expires_at": in_days(3),
    }
    path = f"/tenants/{tenant}/credits"
    answers = await asyncio.gather(*(billing.call("POST", path, json=body) for _ in range(5)))
    other = await billing.call("POST", path, json={**body, "amount_nanos": 8})

    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 200, 201]
    assert other.status_code == 409
    assert await billing.balance(tenant) == 7
    assert await unspent(billing, tenant) == {"welcome": 7}


async def test_credit_is_spent_first_given_back_by_voids_and_expires(
    billing: Service, gateway: Gateway, tenant: str, adjustments: Adjustments
) -> None:
    body = {"amount_nanos": 10**6, "currency": "USD", "reference": "paid"}
    await billing.json("POST", f"/tenants/{tenant}/topups", json=body)
    await give(billing, tenant, 150_000, 20, "later")
    await give(billing, tenant, 150_000, 10, "sooner")
    await use(billing, gateway, tenant, 2)
    assert await unspent(billing, tenant) == {"later": 100_000, "sooner": 0}

    voided = gateway.record(tenant)
    await gateway.publish(voided, voids=(gateway.void(voided),))
    await billing.posted(tenant, 3)
    assert await unspent(billing, tenant) == {"later": 100_000, "sooner": 0}
    held = await billing.balance(tenant)

    await expire_credits(adjustments, uuid7, far_ns(15))
    assert await billing.balance(tenant) == held
    await expire_credits(adjustments, uuid7, far_ns(25))
    await expire_credits(adjustments, uuid7, far_ns(25))
    assert await unspent(billing, tenant) == {"later": 0, "sooner": 0}
    assert await billing.balance(tenant) == held - 100_000 == 10**6 - 0


async def test_only_the_unspent_rest_of_a_credit_expires(
    billing: Service, gateway: Gateway, tenant: str, adjustments: Adjustments
) -> None:
    await give(billing, tenant, 250_000, 10, "gift")
    await use(billing, gateway, tenant, 1)
    [journal] = [
        one for one in await billing.transfers(tenant_id=tenant) if one["kind"] == "charge"
    ]
    assert journal["kind"] == "charge"

    await expire_credits(adjustments, uuid7, far_ns(11))
    assert await billing.balance(tenant) == 0
    kinds = [one["kind"] for one in await billing.transfers(tenant_id=tenant)]
    assert kinds.count("promotional_expiry") == 1


async def test_the_service_expires_credit_by_itself(billing: Service, tenant: str) -> None:
    await give(billing, tenant, 5, 1 / 86_400, "short")  # one second

    await eventually(
        lambda: billing.balance(tenant),
        within_s=40,
        what="the credit is gone",
        until=lambda held: held == 0,
    )

    kinds = [one["kind"] for one in await billing.transfers(tenant_id=tenant)]
    assert kinds.count("promotional_expiry") == 1


async def test_a_credit_given_by_mistake_is_withdrawn_once_and_stays_away(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    await billing.json("POST", f"/tenants/{tenant}/topups", json=PAID)
    await give(billing, tenant, 250_000, 10, "typo")
    await give(billing, tenant, 70_000, 20, "meant")
    [request] = await use(billing, gateway, tenant)
    listed = (await billing.json("GET", f"/tenants/{tenant}/credits"))["items"]
    [typo] = [one["credit_id"] for one in listed if one["reference"] == "typo"]
    path = f"/credits/{typo}/withdrawals"

    answers = await asyncio.gather(
        *(billing.call("POST", path, json={"reason": "not ours"}) for _ in range(3))
    )
    assert sorted(one.status_code for one in answers) == [200, 200, 201]
    for one in answers:
        assert one.json()["taken_back_nanos"] == 150_000
        assert (one.json()["unspent_nanos"], one.json()["withdrawn_for"]) == (0, "not ours")
    assert await billing.balance(tenant) == 10**6 + 70_000
    assert (await refund(billing, request)).status_code == 201  # spent credit comes back ...
    again = await billing.json("POST", path, json={"reason": "another"})
    assert (again["taken_back_nanos"], again["withdrawn_for"]) == (250_000, "not ours")
    assert await billing.balance(tenant) == 10**6 + 70_000  # ... and is gone, too
    assert await unspent(billing, tenant) == {"meant": 70_000, "typo": 0}
    taken = [
        one
        for one in await billing.transfers(tenant_id=tenant)
        if one["kind"] == "promotional_withdrawal"
    ]
    assert [one["reason"] for one in taken] == ["not ours"] * 2
    for unknown in (uuid4(), "x"):
        refused = await billing.call("POST", f"/credits/{unknown}/withdrawals", json=WHY)
        assert refused.status_code == 404
    assert (await billing.call("POST", path, json={"reason": ""})).status_code == 422


async def test_what_a_lease_holds_of_a_withdrawn_credit_is_taken_when_it_comes_back(
    database: Database, billing: Service, tenant: str, adjustments: Adjustments
) -> None:
    await give(billing, tenant, 250_000, 10, "typo")
    async with open_database(database.billing_dsn) as pool:
        leases = Leases(pool, Journal(pool, WARRANTS))
        asker, now_ms = Asker("g1", "run"), time.time_ns() // 10**6
        [granted] = await answer_asks(
            leases, asker, [Ask(tenant, want_nanos=200_000)], uuid7, now_ms
        )
        lease = granted.grant.lease
        assert lease is not None
        [typo] = (await billing.json("GET", f"/tenants/{tenant}/credits"))["items"]
        path = f"/credits/{typo['credit_id']}/withdrawals"
        first = await billing.json("POST", path, json=WHY)
        closing = Ask(tenant, lease_id=lease.lease_id, returned_nanos=lease.granted_nanos)
        await answer_asks(leases, asker, [closing], uuid7, now_ms)
        await expire_credits(adjustments, uuid7, far_ns(0))
        last = await billing.json("POST", path, json=WHY)

    assert first["taken_back_nanos"] == 250_000 - lease.granted_nanos
    assert first["unspent_nanos"] == lease.granted_nanos > 0
    assert (last["taken_back_nanos"], last["unspent_nanos"]) == (250_000, 0)
    assert await billing.balance(tenant) == 0


async def refund(billing: Service, request: str, **body: Any) -> Any:
    plain = {"reference": uuid4().hex, "reason": "our fault"}
    return await billing.call("POST", f"/usage/{request}/refunds", json={**plain, **body})


async def test_a_charge_is_refunded_in_parts_and_never_beyond(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    [request] = await use(billing, gateway, tenant)
    answers = await asyncio.gather(
        *(refund(billing, request, amount_nanos=30_000) for _ in range(6))
    )
    assert sorted(answer.status_code for answer in answers) == [201, 201, 201, 422, 422, 422]

    rest = await refund(billing, request, reference="rest")
    again = await refund(billing, request, reference="rest")
    beyond = await refund(billing, request, reference="beyond")
    assert (rest.status_code, again.status_code, beyond.status_code) == (201, 200, 422)
    assert "was given back in full already" in beyond.text
    assert rest.json()["transfer_id"] == again.json()["transfer_id"]
    assert await billing.balance(tenant) == 0
    changed = await refund(billing, request, reference="rest", amount_nanos=1)
    assert changed.status_code == 409


async def test_too_large_a_refund_is_told_in_the_currency(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    [request] = await use(billing, gateway, tenant)
    refused = await refund(billing, request, amount_nanos=10**9)

    assert refused.status_code == 422
    said = refused.json()["error"]["message"]
    assert "0.0001 USD (100000 nanos) are left, not 1.00 USD (1000000000 nanos) (refunds" in said


async def test_a_refund_gives_own_money_back_before_credit(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    await give(billing, tenant, 40_000, 10, "gift")
    [request] = await use(billing, gateway, tenant)
    assert await unspent(billing, tenant) == {"gift": 0}

    await refund(billing, request, amount_nanos=60_000)
    assert await unspent(billing, tenant) == {"gift": 0}
    await refund(billing, request, amount_nanos=10_000)
    assert await unspent(billing, tenant) == {"gift": 10_000}
    await refund(billing, request)
    assert await unspent(billing, tenant) == {"gift": 40_000}


async def test_a_refund_says_what_of_it_was_credit_that_has_ended(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    soon = await give(billing, tenant, 30_000, 1, "soon")
    await give(billing, tenant, 20_000, 10, "later")
    [request] = await use(billing, gateway, tenant)
    path = f"/credits/{soon['transfer_id']}/withdrawals"
    await billing.json("POST", path, json={"reason": "by mistake"})
    own = await refund(billing, request, amount_nanos=50_000, reference="own")
    kept = await refund(billing, request, amount_nanos=25_000, reference="kept")
    rest = await refund(billing, request, reference="rest")
    again = await refund(billing, request, reference="rest")
    told = [one.json()["ended_credit_nanos"] for one in (own, kept, rest, again)]

    assert told == [0, 5_000, 25_000, 25_000]
    assert (rest.status_code, again.status_code) == (201, 200)


async def test_a_void_after_a_refund_takes_nothing_back_twice(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    await give(billing, tenant, 40_000, 10, "gift")
    record = gateway.record(tenant)
    await gateway.publish(record)
    await billing.posted(tenant, 1)
    request = f"req_{record.request_id.hex()}"
    await refund(billing, request, amount_nanos=80_000)
    await gateway.publish(voids=(gateway.void(record),))

    await eventually(
        lambda: billing.balance(tenant),
        within_s=20,
        what="the void is posted",
        until=lambda held: held == 40_000,
    )
    assert await unspent(billing, tenant) == {"gift": 40_000}
    late = await refund(billing, request)
    assert late.status_code == 409
    assert "taken back" in late.json()["error"]["message"]


async def test_a_wrong_top_up_is_undone_once_and_only_while_the_money_is_there(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    body = {"amount_nanos": 500_000, "currency": "USD", "reference": "typo"}
    wrong = await billing.json("POST", f"/tenants/{tenant}/topups", json=body)
    path = f"/transfers/{wrong['transfer_id']}/corrections"
    await use(billing, gateway, tenant, 1)
    short = await billing.call("POST", path, json={"reason": "typo"})
    assert short.status_code == 409
    assert "400000" in short.json()["error"]["message"]

    more = {"amount_nanos": 200_000, "currency": "USD", "reference": "more"}
    await billing.json("POST", f"/tenants/{tenant}/topups", json=more)
    calls = (billing.call("POST", path, json={"reason": "typo"}) for _ in range(4))
    answers = await asyncio.gather(*calls)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 201]
    assert await billing.balance(tenant) == 100_000
    undone = answers[0].json()["transfer_id"]
    twice = await billing.call("POST", f"/transfers/{undone}/corrections", json={"reason": "x"})
    assert twice.status_code == 422


async def test_credits_equal_their_spending_replayed(
    billing: Service, gateway: Gateway, tenant: str, admin: asyncpg.Connection
) -> None:
    chance = random.Random(5)
    for number in range(4):
        await give(billing, tenant, chance.randrange(1, 300_000), 10 - number, f"gift {number}")
    requests = await use(billing, gateway, tenant, 6)
    for request in requests:
        await refund(billing, request, amount_nanos=chance.randrange(1, COST_NANOS))

    rows = await admin.fetch(
        "SELECT c.amount_nanos - coalesce(sum(s.amount_nanos), 0) AS left, u.unspent_nanos"
        " FROM promotional_credits AS c JOIN promotional_unspent AS u USING (credit_id)"
        " LEFT JOIN promotional_spending AS s USING (credit_id)"
        " WHERE c.tenant_id = $1 GROUP BY c.credit_id, u.unspent_nanos",
        tenant,
    )
    assert len(rows) == 4
    assert all(row["left"] == row["unspent_nanos"] for row in rows)


GIFT: Json = {"amount_nanos": 1, "currency": "USD", "reference": "r", "expires_at": in_days(1)}


@pytest.mark.parametrize(
    "change",
    [
        {"amount_nanos": 0},
        {"amount_nanos": -1},
        {"amount_nanos": 10**15 + 1},
        {"amount_nanos": 2**63},
        {"amount_nanos": 2**200},
        {"amount_nanos": 1.5},
        {"amount_nanos": "1"},
        {"amount_nanos": True},
        {"currency": "EUR"},
        {"currency": "XXX"},
        {"currency": "usd"},
        {"currency": "'; DROP TABLE postings; --"},
        {"reference": ""},
        {"reference": "a\u0000b"},
        {"reference": "\u202egnp.exe"},
        {"reference": "\u200f"},
        {"reference": "tab\there"},
        {"reference": "x" * 201},
        {"expires_at": "2020-01-01T00:00:00Z"},
        {"expires_at": "9999-01-01T00:00:00Z"},
        {"expires_at": "2030-01-01T00:00:00"},
        {"expires_at": "soon"},
        {"unknown": 1},
    ],
)
async def test_a_bad_credit_is_refused_and_moves_nothing(
    billing: Service, tenant: str, change: Json
) -> None:
    answer = await billing.call("POST", f"/tenants/{tenant}/credits", json={**GIFT, **change})

    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["message"]
    assert await billing.balance(tenant) == 0


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"amount_nanos": 0}, 422),
        ({"amount_nanos": -5}, 422),
        ({"amount_nanos": COST_NANOS + 1}, 422),
        ({"amount_nanos": 2**63}, 422),
        ({"amount_nanos": 0.5}, 422),
        ({"reference": "\u202e"}, 422),
        ({"reason": ""}, 422),
        ({"reason": "\u0007"}, 422),
        ({"reason": "x" * 201}, 422),
        ({"currency": "USD"}, 422),
    ],
)
async def test_a_bad_refund_is_refused_and_moves_nothing(
    billing: Service, gateway: Gateway, tenant: str, change: Json, status: int
) -> None:
    [request] = await use(billing, gateway, tenant)
    answer = await refund(billing, request, **change)

    assert answer.status_code == status, answer.text
    assert await billing.balance(tenant) == -COST_NANOS


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"/usage/req_{'0' * 32}/refunds", 404),
        ("/usage/'; DROP TABLE postings; --/refunds", 422),
        ("/usage/%00/refunds", 422),
    ],
)
async def test_what_was_not_charged_is_not_refunded(
    billing: Service, path: str, status: int
) -> None:
    answer = await billing.call("POST", path, json={"reference": "r", "reason": "x"})

    assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    "name",
    [
        "7c0f6c58-1f0b-4a6e-9d29-5d5ad4f0a3c1",
        "nothing",
        "%00",
        "'; DROP TABLE transfers; --",
        "x" * 300,
    ],
)
async def test_what_was_not_posted_is_not_corrected(billing: Service, name: str) -> None:
    answer = await billing.call("POST", f"/transfers/{name}/corrections", json={"reason": "x"})

    assert answer.status_code == 404, answer.text
