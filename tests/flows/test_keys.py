"""Keys work everywhere within a second of a change, and open only what they may."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import httpx
from busbar_runtime.platform import Platform
from harness.operator import Customer, Operator
from harness.polling import eventually, quickest_s

PROPAGATION_S, SEEN_WITHIN_S = 1.0, 30.0


async def status(platform: Platform, key: str, path: str = "/v1/models") -> int:
    async with httpx.AsyncClient(
        base_url=platform.endpoints["http"], timeout=30, trust_env=False, verify=False
    ) as client:
        return (await client.get(path, headers={"authorization": f"Bearer {key}"})).status_code


async def seen_after_s(ask: Callable[[], Awaitable[int]], wanted: HTTPStatus) -> float:
    """Seconds from now until the first request is sent that is answered with that status."""
    began = sent = time.monotonic()

    async def send() -> int:
        nonlocal sent
        sent = time.monotonic()
        return await ask()

    what = f"an answer with {wanted}"
    await eventually(send, within_s=SEEN_WITHIN_S, what=what, until=lambda code: code == wanted)
    return sent - began


async def test_a_new_key_opens_and_a_revoked_one_closes_within_a_second(
    platform: Platform, operator: Operator, customer: Customer
) -> None:
    made: list[str] = []

    async def open_and_close() -> float:
        new = await operator.new_key(customer.tenant_id)
        made.append(new["key"])
        opens_s = await seen_after_s(lambda: status(platform, made[-1]), HTTPStatus.OK)
        await operator.call("billing", "DELETE", f"/admin/v1/keys/{new['key_id']}")
        closes_s = await seen_after_s(lambda: status(platform, made[-1]), HTTPStatus.UNAUTHORIZED)
        return max(opens_s, closes_s)

    assert await quickest_s(open_and_close, under_s=PROPAGATION_S) < PROPAGATION_S
    listed = await operator.json("billing", "GET", f"/admin/v1/tenants/{customer.tenant_id}/keys")
    assert not [key for key in made if key in str(listed)]


async def test_a_key_sees_only_the_deployments_it_may_use(
    platform: Platform, operator: Operator, customer: Customer
) -> None:
    limited = await operator.key(customer.tenant_id, ["simple"])

    assert await status(platform, limited["key"], "/v2/models/simple") == HTTPStatus.OK
    assert await status(platform, limited["key"], "/v2/models/echo-fp32") == HTTPStatus.NOT_FOUND
    assert await status(platform, limited["key"], "/v1/models/echo-fp32") == HTTPStatus.NOT_FOUND


async def test_a_key_that_may_only_read_usage_calls_no_model(
    platform: Platform, operator: Operator, customer: Customer
) -> None:
    path = f"/admin/v1/tenants/{customer.tenant_id}/keys"
    body = {"name": "reads", "scopes": ["read_usage"]}
    key = (await operator.json("billing", "POST", path, json=body))["key"]
    await eventually(
        lambda: status(platform, key),
        within_s=SEEN_WITHIN_S,
        what="the key is known and refused",
        until=lambda code: code == HTTPStatus.FORBIDDEN,
    )
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(
        headers=headers, timeout=30, trust_env=False, verify=False
    ) as client:
        openai = await client.post(platform.endpoints["http"] + "/v1/embeddings", json={})
        kserve = await client.post(platform.endpoints["http"] + "/v2/models/simple/infer", json={})
        own = await client.get(platform.endpoints["account"] + "/account/v1/balance")
        change = await client.post(platform.endpoints["account"] + "/account/v1/keys", json={})

    assert openai.status_code == kserve.status_code == HTTPStatus.FORBIDDEN
    assert openai.json()["error"]["type"] == "permission_error"
    assert "lacks the scope serve" in openai.json()["error"]["message"]
    assert "lacks the scope serve" in kserve.json()["error"]
    assert own.json()["tenant_id"] == customer.tenant_id
    assert change.status_code == HTTPStatus.FORBIDDEN


async def test_a_suspended_tenant_is_refused_and_a_resumed_one_served_within_a_second(
    platform: Platform, operator: Operator, customer: Customer
) -> None:
    names = ("INPUT0", "INPUT1")
    tensors = [{"name": n, "shape": [1, 16], "datatype": "INT32", "data": [1] * 16} for n in names]

    said: list[str] = []

    async def infer() -> int:
        async with httpx.AsyncClient(trust_env=False, verify=False, timeout=30) as client:
            answer = await client.post(
                platform.endpoints["http"] + "/v2/models/simple/infer",
                headers={"authorization": f"Bearer {customer.key}"},
                json={"inputs": tensors},
            )
            said.append(answer.text)
            return answer.status_code

    path = f"/admin/v1/tenants/{customer.tenant_id}"
    reason = {"reason": "invoice 7 is unpaid"}

    async def suspend_and_resume() -> float:
        await operator.json("billing", "POST", f"{path}/suspend", json=reason)
        refused_s = await seen_after_s(infer, HTTPStatus.FORBIDDEN)
        assert "this account is suspended: invoice 7 is unpaid" in said[-1]
        await operator.json("billing", "POST", f"{path}/resume")
        return max(refused_s, await seen_after_s(infer, HTTPStatus.OK))

    assert await quickest_s(suspend_and_resume, under_s=PROPAGATION_S) < PROPAGATION_S


async def test_every_route_but_health_refuses_without_credentials(platform: Platform) -> None:
    base = platform.endpoints["http"]
    async with httpx.AsyncClient(
        base_url=base, timeout=30, trust_env=False, verify=False
    ) as client:
        document = (await client.get("/openapi.json")).json()
        open_to_all = {"/v2/health/live", "/v2/health/ready", "/openapi.json"}
        refused: dict[str, int] = {}
        for path, operations in document["paths"].items():
            concrete = path.replace("{", "").replace("}", "")
            for method in operations.keys() & {"get", "post", "put", "delete"}:
                answer = await client.request(method.upper(), concrete)
                if path not in open_to_all:
                    refused[f"{method} {path}"] = answer.status_code

    assert refused
    assert set(refused.values()) == {HTTPStatus.UNAUTHORIZED}, refused


async def test_admin_apis_refuse_a_customers_key(operator: Operator, customer: Customer) -> None:
    paths = {
        "billing": "/admin/v1/tenants",
        "scheduler": "/admin/v1/deployments",
        "telemetry": "/admin/v1/fleet",
    }
    for service, path in paths.items():
        headers = {"authorization": f"Bearer {customer.key}"}
        answer = await operator.call(service, "GET", path, headers=headers)

        assert answer.status_code == HTTPStatus.UNAUTHORIZED
