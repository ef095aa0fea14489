"""References of money that was undone: a repeat would say that money moved, and move none."""

from __future__ import annotations

import httpx
from billing_parts import Gateway, Service

PAID = {"amount_nanos": 5_000, "currency": "USD", "reference": "bank-7"}
WHY = {"reason": "oops"}
FAR = "2090-01-01T00:00:00Z"


def assert_names_undone(answer: httpx.Response, transfer_id: str) -> None:
    assert answer.status_code == 409, answer.text
    said = answer.json()["error"]["message"]
    assert f"transfer {transfer_id}, which was undone at " in said
    assert "use a new reference" in said


async def test_a_top_up_that_was_corrected_is_not_taken_for_a_repeat(
    billing: Service, tenant: str
) -> None:
    path = f"/tenants/{tenant}/topups"
    wrong = (await billing.json("POST", path, json=PAID))["transfer_id"]
    repeated = await billing.call("POST", path, json=PAID)
    await billing.json("POST", f"/transfers/{wrong}/corrections", json=WHY)
    again = await billing.call("POST", path, json=PAID)
    anew = await billing.call("POST", path, json={**PAID, "reference": "bank-7 again"})

    assert_names_undone(again, wrong)
    assert (repeated.status_code, anew.status_code) == (200, 201)
    assert await billing.balance(tenant) == 5_000


async def test_a_credit_that_was_withdrawn_is_not_taken_for_a_repeat(
    billing: Service, tenant: str
) -> None:
    path, gift = f"/tenants/{tenant}/credits", {**PAID, "expires_at": FAR}
    given = (await billing.json("POST", path, json=gift))["transfer_id"]
    await billing.json("POST", f"/credits/{given}/withdrawals", json=WHY)

    assert_names_undone(await billing.call("POST", path, json=gift), given)
    assert await billing.balance(tenant) == 0


async def test_a_refund_that_was_corrected_is_not_taken_for_a_repeat(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    record = gateway.record(tenant)
    await gateway.publish(record)
    await billing.posted(tenant, 1)
    path = f"/usage/req_{record.request_id.hex()}/refunds"
    wanted = {"amount_nanos": 9, "reference": "r", **WHY}
    given = (await billing.json("POST", path, json=wanted))["transfer_id"]
    await billing.json("POST", f"/tenants/{tenant}/topups", json=PAID)
    await billing.json("POST", f"/transfers/{given}/corrections", json=WHY)

    assert_names_undone(await billing.call("POST", path, json=wanted), given)
    assert (await billing.call("POST", path, json={**wanted, "reference": "s"})).is_success
