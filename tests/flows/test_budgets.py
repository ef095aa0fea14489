"""A monthly budget on a plan: what the customer of a gateway sees of it."""

from __future__ import annotations

import secrets
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from busbar_runtime.platform import Platform
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from harness.operator import Customer, Operator, edge
from harness.polling import eventually
from tritonclient.grpc import service_pb2

BUDGET_REQUESTS = 10
REQUEST: dict[str, Any] = {"model": "all-minilm-l6-v2", "input": "as much as that"}
SOON_S = 20


class Plan:
    """One plan, for tenants of one test."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._id = f"p-{secrets.token_hex(4)}"

    async def put(self, **limits: Any) -> None:
        """Make or change it."""
        body = {"name": "A test's", **limits}
        await self._operator.json("billing", "PUT", f"/admin/v1/plans/{self._id}", json=body)

    async def customer(self) -> Customer:
        """A fresh tenant that has it from before its first request."""
        made = await self._operator.customer()
        path = f"/admin/v1/tenants/{made.tenant_id}/terms"
        await self._operator.json("billing", "PUT", path, json={"plan_id": self._id})
        return made


async def ask(client: httpx.AsyncClient) -> httpx.Response:
    """One request; again for as long as it is told to come back soon."""

    async def look() -> httpx.Response:
        return await client.post("/v1/embeddings", json=REQUEST)

    return await eventually(look, within_s=SOON_S, what="an answer for good", until=is_final)


def is_final(answer: httpx.Response) -> bool:
    limited = answer.status_code == 429 and answer.json()["error"]["code"] == "rate_limit_exceeded"
    return not limited


async def charges(operator: Operator, tenant_id: str, count: int) -> list[int]:
    """What the tenant was charged, once there are so many charges."""

    async def look() -> list[int]:
        return [one["amount_nanos"] for one in await operator.usage(tenant_id)]

    what = f"{count} charges"
    return await eventually(look, within_s=SOON_S, what=what, until=lambda got: len(got) >= count)


@pytest.fixture
async def cost_nanos(platform: Platform, operator: Operator, customer: Customer) -> int:
    """What one request costs."""
    async with edge(platform.endpoints["http"], customer.key) as client:
        assert (await ask(client)).is_success
    [charged] = await charges(operator, customer.tenant_id, 1)
    return charged


async def grpc_reason(address: str, key: str) -> str:
    """Why a request over gRPC is refused."""
    request: Any = service_pb2.ModelInferRequest(model_name="echo-fp32")
    request.raw_input_contents.append(np.arange(16, dtype=np.float32).tobytes())
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[16])
    async with grpc.aio.insecure_channel(address) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        metadata = (("authorization", f"Bearer {key}"),)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await infer(request.SerializeToString(), timeout=30, metadata=metadata)
    trailing: dict[str, Any] = dict(refused.value.trailing_metadata() or ())
    status, info = Status.FromString(trailing["grpc-status-details-bin"]), ErrorInfo()
    assert status.details[0].Unpack(info)
    assert trailing["x-should-retry"] == "false"
    return info.reason


async def test_a_hard_budget_refuses_for_good_until_it_is_raised_and_an_alert_never_does(
    platform: Platform, operator: Operator, cost_nanos: int
) -> None:
    budget_nanos = BUDGET_REQUESTS * cost_nanos
    plan = Plan(operator)
    await plan.put(monthly_budget_nanos=budget_nanos)
    customer, served = await plan.customer(), 0
    async with edge(platform.endpoints["http"], customer.key) as client:
        while (answer := await ask(client)).is_success:
            served += 1
            assert served <= BUDGET_REQUESTS
        over_grpc = await grpc_reason(platform.endpoints["grpc"], customer.key)
        spent = await charges(operator, customer.tenant_id, served)

        async def is_served() -> bool:
            return (await ask(client)).is_success

        await plan.put(monthly_budget_nanos=3 * budget_nanos)
        await eventually(is_served, within_s=SOON_S, what="the raised budget serves")
        await plan.put(monthly_budget_nanos=1, budget_kind="alert")
        await eventually(is_served, within_s=SOON_S, what="an alert budget serves")
        after = [await is_served() for _ in range(BUDGET_REQUESTS)]

    print(f"\n{served} served of {BUDGET_REQUESTS}")  # noqa: T201
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (
        429,
        "insufficient_quota",
        "insufficient_quota",
    )
    assert "budget" in error["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    assert over_grpc == "INSUFFICIENT_QUOTA"
    assert budget_nanos / 2 <= sum(spent) <= budget_nanos  # the last claims are larger than costs
    assert all(after)
