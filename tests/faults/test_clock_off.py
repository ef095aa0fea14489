"""The clock of one gateway an hour off: it serves, shares and charges as if it were right."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from busbar_runtime.platform import Platform
from harness.another_gateway import another_gateway
from harness.audit import assert_audit_clean
from harness.operator import Customer, Json, Operator
from harness.steady_load import Clients

HOUR_S = 3_600
OWN_NANOS, TO_COME_NANOS = 7_000_000, 9_000_000
"""What a request costs the tenant by prices of its own: now, and in half an hour."""


def by_request(nanos: int) -> Json:
    """Prices by which each request costs so much."""
    return {"default": {"request": {"amount_nanos": nanos}}}


async def expiring_key(operator: Operator, customer: Customer) -> str:
    """A key of the customer that is valid for half an hour more."""
    path = f"/admin/v1/tenants/{customer.tenant_id}/keys"
    expires_at = (datetime.now(UTC) + timedelta(minutes=30)).isoformat()
    body = {"name": "short", "expires_at": expires_at}
    return (await operator.json("billing", "POST", path, json=body))["key"]


@pytest.mark.parametrize("off_s", [HOUR_S, -HOUR_S])
async def test_an_hour_off_a_gateway_serves_and_charges_as_the_others(
    platform: Platform, operator: Operator, tmp_path: Path, off_s: int
) -> None:
    customer = await operator.customer()
    key = await expiring_key(operator, customer)
    in_half_an_hour = (datetime.now(UTC) + timedelta(minutes=30)).isoformat()
    await operator.prices(customer.tenant_id, by_request(OWN_NANOS))
    to_come = {
        "tenant_id": customer.tenant_id,
        "classes": by_request(TO_COME_NANOS),
        "effective_from": in_half_an_hour,
    }
    await operator.json("billing", "POST", "/admin/v1/prices", json=to_come)
    async with another_gateway(platform, tmp_path, clock_off_s=off_s) as other:
        ahead_s = await other.metric("busbar_gateway_clock_ahead_seconds")
        clients = Clients(other.grpc, other.http, key)
        answered = [await clients.tensors() for _ in range(3)]
        answered += [await clients.embeddings() for _ in range(3)]
        await clients.close()
        at_both = [platform.endpoints["http"], other.http]
        kept, replayed = await ask_twice(key, at_both)

    assert abs(ahead_s - off_s) < 1
    assert replayed.content == kept.content
    answered.append(kept.headers["x-request-id"])
    for request_id in answered:
        usage = await operator.usage_of(request_id)
        age = datetime.now(UTC) - datetime.fromisoformat(usage["admitted_at"])
        assert usage["amount_nanos"] == OWN_NANOS
        assert abs(age) < timedelta(minutes=2)
    charged = [one["request_id"] for one in await operator.usage(customer.tenant_id)]
    assert sorted(charged) == sorted(answered)
    await assert_audit_clean(platform)


async def ask_twice(key: str, urls: list[str]) -> list[httpx.Response]:
    """The same request under one Idempotency-Key at each of these gateways."""
    body: dict[str, Any] = {"model": "all-minilm-l6-v2", "input": "once"}
    headers = {"authorization": f"Bearer {key}", "idempotency-key": secrets.token_hex(8)}
    async with httpx.AsyncClient(
        headers=headers, timeout=15, trust_env=False, verify=False
    ) as client:
        answers = [await client.post(f"{url}/v1/embeddings", json=body) for url in urls]
    assert [one.status_code for one in answers] == [200, 200]
    return answers
