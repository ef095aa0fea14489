"""A tenant with one cent and 64 clients on two gateways."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from busbar_runtime.platform import Platform
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from harness.another_gateway import another_gateway
from harness.operator import Operator, edge
from harness.polling import eventually
from tritonclient.grpc import service_pb2

CENT_NANOS = 10_000_000
REQUEST_NANOS = 50_000
"""Two hundred requests to the cent: 64 of them at once are nearly a third of it."""
RAISED_NANOS = 2_000_000
"""Five requests to the cent: fewer than are under way at any moment."""
LITTLE_NANOS = 10_000
"""Of a chat of some tokens it covers a few."""
CLIENTS_OF_EACH = 16
"""Of each API at each gateway."""
POLLS = 3
_METHOD = "/inference.GRPCInferenceService/ModelInfer"


@dataclass
class Seen:
    """How the requests ended."""

    answered: int = 0
    refused: Counter[str] = field(default_factory=Counter[str])
    """Refused for good, by API."""
    later: int = 0
    """Told to come back soon: requests in flight claimed what was left."""


async def over_http(url: str, key: str, seen: Seen, *, once: bool = False) -> None:
    """Ask until the money is gone, or `once`."""
    body = {"model": "all-minilm-l6-v2", "input": "one cent"}
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=30, trust_env=False, verify=False
    ) as client:
        while True:
            answer = await client.post("/v1/embeddings", json=body)
            if answer.is_success:
                seen.answered += 1
                if once:
                    return
                continue
            assert answer.status_code == 429, answer.text
            error = answer.json()["error"]
            if error["code"] == "rate_limit_exceeded":
                assert int(answer.headers["retry-after-ms"]) > 0
                seen.later += 1
                continue
            assert error["code"] == error["type"] == "insufficient_quota"
            assert "credit" in error["message"]
            assert answer.headers["x-should-retry"] == "false"
            assert "retry-after" not in answer.headers
            seen.refused["http"] += 1
            return


async def over_grpc(address: str, key: str, seen: Seen) -> None:
    """Ask until the money is gone."""
    request: Any = service_pb2.ModelInferRequest(model_name="echo-fp32")
    request.raw_input_contents.append(np.arange(16, dtype=np.float32).tobytes())
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[16])
    body, metadata = request.SerializeToString(), (("authorization", f"Bearer {key}"),)
    async with grpc.aio.insecure_channel(address) as channel:
        infer = channel.unary_unary(_METHOD)
        while True:
            try:
                await infer(body, timeout=30, metadata=metadata)
                seen.answered += 1
            except grpc.aio.AioRpcError as error:
                reason = reason_of(error)
                if reason == "RATE_LIMIT_EXCEEDED":
                    seen.later += 1
                    continue
                if reason != "INSUFFICIENT_QUOTA":
                    raise
                seen.refused["grpc"] += 1
                return


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """What the details say; empty for anything but RESOURCE_EXHAUSTED."""
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return ""
    trailing: dict[str, Any] = dict(error.trailing_metadata() or ())
    status, info = Status.FromString(trailing["grpc-status-details-bin"]), ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason


@dataclass(frozen=True)
class Poor:
    """A tenant without money yet, known to both gateways."""

    tenant_id: str
    key: str
    gateways: tuple[tuple[str, str], ...]
    """HTTP and gRPC address of each."""


@asynccontextmanager
async def poor_tenant(
    platform: Platform, operator: Operator, tmp_path: Path, *, nanos: int
) -> AsyncIterator[Poor]:
    """One that has nothing and pays so much for a request, and two gateways that know it."""
    name = f"cent-{secrets.token_hex(4)}"
    made = await operator.json("billing", "POST", "/admin/v1/tenants", json={"name": name})
    tenant_id: str = made["tenant_id"]
    prices = {"default": {"request": {"amount_nanos": nanos, "per_units": 1}}}
    await operator.prices(tenant_id, prices)
    key: str = (await operator.key(tenant_id))["key"]
    async with another_gateway(
        platform, tmp_path, gateway_id=f"g-{secrets.token_hex(4)}"
    ) as second:
        first = platform.endpoints["http"], platform.endpoints["grpc"]
        gateways = (first, (second.http, second.grpc))
        for http, address in gateways:

            async def refuses(http: str = http, address: str = address) -> bool:
                seen = Seen()
                try:
                    await over_http(http, key, seen)
                    await over_grpc(address, key, seen)
                except (AssertionError, grpc.aio.AioRpcError):
                    return False
                return seen.answered == 0

            await eventually(refuses, within_s=20, what="both APIs refuse who has nothing")
        yield Poor(tenant_id, key, gateways)


@pytest.fixture
async def poor(platform: Platform, operator: Operator, tmp_path: Path) -> AsyncIterator[Poor]:
    async with poor_tenant(platform, operator, tmp_path, nanos=REQUEST_NANOS) as tenant:
        yield tenant


async def with_a_cent(operator: Operator, poor: Poor) -> Seen:
    """Pay in a cent, and wait until both gateways serve; what was answered until then."""
    path = f"/admin/v1/tenants/{poor.tenant_id}/topups"
    paid = {"amount_nanos": CENT_NANOS, "currency": "USD", "reference": "the cent"}
    await operator.json("billing", "POST", path, json=paid)
    seen = Seen()
    for http, _ in poor.gateways:  # each has just been told that there is nothing, and says so on

        async def serves(http: str = http) -> bool:
            before = seen.answered
            await over_http(http, poor.key, seen, once=True)
            return seen.answered > before

        await eventually(serves, within_s=20, what="a gateway has heard of the money")
    seen.refused.clear()
    return seen


def clients_of(poor: Poor, seen: Seen) -> list[Coroutine[Any, Any, None]]:
    """As many of each API at each gateway, which ask until the money is gone."""
    return [
        client
        for http, address in poor.gateways
        for _ in range(CLIENTS_OF_EACH)
        for client in (over_http(http, poor.key, seen), over_grpc(address, poor.key, seen))
    ]


async def test_a_cent_is_spent_to_the_last_and_never_twice(operator: Operator, poor: Poor) -> None:
    path = f"/admin/v1/tenants/{poor.tenant_id}"
    seen, polled = await with_a_cent(operator, poor), list[dict[str, Any]]()

    async def poll() -> None:
        while True:
            polled.append(await operator.json("billing", "GET", f"{path}/balance"))

    async def polls() -> int:
        return len(polled)

    polling = asyncio.create_task(poll())
    async with asyncio.timeout(60):
        await asyncio.gather(*clients_of(poor, seen))

    async def charged() -> int:
        return sum(one["amount_nanos"] for one in await operator.usage(poor.tenant_id))

    spent = await eventually(
        charged,
        within_s=30,
        what="everything that was answered is charged",
        until=lambda nanos: nanos >= seen.answered * REQUEST_NANOS,
    )
    await eventually(polls, within_s=30, what="polls of the balance", until=lambda n: n >= POLLS)
    polling.cancel()
    print(f"\n{seen}, {spent} nanos charged, {len(polled)} polls")  # noqa: T201
    assert seen.refused == {"http": 2 * CLIENTS_OF_EACH, "grpc": 2 * CLIENTS_OF_EACH}
    assert spent == seen.answered * REQUEST_NANOS
    assert 0.9 * CENT_NANOS <= spent <= CENT_NANOS
    for balance in polled:
        assert balance["available_nanos"] >= 0
        assert balance["balance_nanos"] >= 0
        assert balance["owed_nanos"] == 0


async def test_prices_that_rise_under_load_take_nobody_below_zero(
    platform: Platform, operator: Operator, tmp_path: Path
) -> None:
    async with poor_tenant(platform, operator, tmp_path, nanos=1) as poor:
        seen = await with_a_cent(operator, poor)
        clients = asyncio.gather(*clients_of(poor, seen))
        raised = {"default": {"request": {"amount_nanos": RAISED_NANOS, "per_units": 1}}}
        await operator.prices(poor.tenant_id, raised)
        async with asyncio.timeout(60):
            await clients
        usage = await eventually(
            lambda: operator.usage(poor.tenant_id),
            within_s=30,
            what="everything that was answered is charged",
            until=lambda charged: len(charged) >= seen.answered,
        )
        path = f"/admin/v1/tenants/{poor.tenant_id}/balance"
        balance = await operator.json("billing", "GET", path)

    amounts = Counter(one["amount_nanos"] for one in usage)
    print(f"\n{seen}, {amounts}")  # noqa: T201
    assert amounts.total() == seen.answered
    assert amounts.keys() == {1, RAISED_NANOS}
    assert amounts[RAISED_NANOS] <= CENT_NANOS // RAISED_NANOS
    assert (balance["balance_nanos"] >= 0, balance["owed_nanos"]) == (True, 0)


async def test_a_small_balance_is_spent_until_it_lacks_what_a_chat_costs(
    platform: Platform, operator: Operator
) -> None:
    name = f"little-{secrets.token_hex(4)}"
    made = await operator.json("billing", "POST", "/admin/v1/tenants", json={"name": name})
    tenant = f"/admin/v1/tenants/{made['tenant_id']}"
    paid = {"amount_nanos": LITTLE_NANOS, "currency": "USD", "reference": "little"}
    await operator.json("billing", "POST", f"{tenant}/topups", json=paid)
    key = (await operator.key(made["tenant_id"]))["key"]
    body = {
        "model": "tiny-lm",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 1,
    }
    answered = 0
    async with edge(platform.endpoints["http"], key) as client:
        while (answer := await client.post("/v1/chat/completions", json=body)).is_success:
            answered += 1
    error = answer.json()["error"]
    usage = await eventually(
        lambda: operator.usage(made["tenant_id"]),
        within_s=30,
        what="everything that was answered is charged",
        until=lambda charged: len(charged) == answered,
    )
    costs = [one["amount_nanos"] for one in usage]

    assert error["code"] == "insufficient_quota", error
    assert 0 <= LITTLE_NANOS - sum(costs) < max(costs)
