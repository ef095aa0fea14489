"""What is changed for a customer holds at every gateway within a second, billing killed or not."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest
from busbar_runtime.platform import Platform
from harness.another_gateway import another_gateway
from harness.operator import Customer, Operator
from harness.polling import eventually, quickest_s

PROPAGATION_S, SEEN_WITHIN_S = 1.0, 30.0

Change = Callable[[Operator, Customer], Awaitable[object]]
Seen = Callable[[httpx.Response], bool]


class Edge:
    """One gateway, as a customer sees it."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=30, trust_env=False, verify=False)

    async def infer(self, key: str) -> httpx.Response:
        """One request that costs little."""
        return await self._http.post(
            "/v1/embeddings",
            headers={"authorization": f"Bearer {key}"},
            json={"model": "all-minilm-l6-v2", "input": "still me"},
        )

    async def sees(self, key: str, what: str, until: Seen) -> float:
        """Wait until an answer is as wanted; the seconds until the request for it was sent."""
        began = sent = time.monotonic()

        async def ask() -> httpx.Response:
            nonlocal sent
            sent = time.monotonic()
            return await self.infer(key)

        await eventually(ask, within_s=SEEN_WITHIN_S, what=what, until=until)
        return sent - began

    async def close(self) -> None:
        await self._http.aclose()


def has_status(status: HTTPStatus) -> Seen:
    return lambda answer: answer.status_code == status


async def revoke(operator: Operator, customer: Customer) -> None:
    await operator.json("billing", "DELETE", f"/admin/v1/keys/{customer.key_id}")


async def suspend(operator: Operator, customer: Customer) -> None:
    path = f"/admin/v1/tenants/{customer.tenant_id}/suspend"
    await operator.json("billing", "POST", path, json={"reason": "unpaid"})


async def limit(operator: Operator, customer: Customer) -> None:
    wanted: dict[str, Any] = {"overrides": {"requests_per_minute": 7_777}}
    path = f"/admin/v1/tenants/{customer.tenant_id}/terms"
    await operator.json("billing", "PUT", path, json=wanted)


def is_limited(answer: httpx.Response) -> bool:
    return answer.headers.get("x-ratelimit-limit-requests") == "7777"


CHANGES = {
    "revoked": (revoke, has_status(HTTPStatus.UNAUTHORIZED)),
    "suspended": (suspend, has_status(HTTPStatus.FORBIDDEN)),
    "limited": (limit, is_limited),
}


@pytest.fixture(scope="module")
async def edges(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[list[Edge]]:
    """Two gateways."""
    name, place = f"g-{secrets.token_hex(4)}", tmp_path_factory.mktemp("second")
    async with another_gateway(platform, place, gateway_id=name) as second:
        made = [Edge(platform.endpoints["http"]), Edge(second.http)]
        yield made
        for edge in made:
            await edge.close()


async def test_a_change_holds_at_every_gateway_within_a_second(
    operator: Operator, edges: list[Edge]
) -> None:
    took_s: dict[str, list[float]] = {}
    for name, (change, seen) in CHANGES.items():

        async def holds(name: str = name, change: Change = change, seen: Seen = seen) -> float:
            customer = await operator.customer()
            for edge in edges:
                await edge.sees(customer.key, "the key opens", has_status(HTTPStatus.OK))
                assert not seen(await edge.infer(customer.key))
            await change(operator, customer)
            waits = [edge.sees(customer.key, name, seen) for edge in edges]
            at_each_s = await asyncio.gather(*waits)
            took_s.setdefault(name, []).extend(at_each_s)
            return max(at_each_s)

        assert await quickest_s(holds, under_s=PROPAGATION_S) < PROPAGATION_S, took_s
    print(f"\n{took_s}")  # noqa: T201


async def test_a_change_outlives_the_billing_that_made_it(
    platform: Platform, operator: Operator, edges: list[Edge], tmp_path: Path
) -> None:
    customers = {name: await operator.customer() for name in CHANGES}
    untouched = await operator.customer()
    for customer in [*customers.values(), untouched]:
        for edge in edges:
            await edge.sees(customer.key, "the key opens", has_status(HTTPStatus.OK))
    changes = [change(operator, customers[name]) for name, (change, _) in CHANGES.items()]
    await asyncio.gather(*changes)
    try:
        await platform.kill("billing", signal.SIGKILL)
        await platform.stop("billing")
        waits = [
            edge.sees(customers[name].key, name, seen)
            for name, (_, seen) in CHANGES.items()
            for edge in edges
        ]
        took_s = await asyncio.gather(*waits)
        untouched_at = [await edge.infer(untouched.key) for edge in edges]
        third_id = f"g-{secrets.token_hex(4)}"
        async with another_gateway(platform, tmp_path, gateway_id=third_id) as third:
            newcomer = Edge(third.http)
            told = {name: await newcomer.infer(one.key) for name, one in customers.items()}
            without_money = await newcomer.infer(untouched.key)
            await newcomer.close()
    finally:
        await platform.start("billing")
    await operator.billing_answers(within_s=30)
    print(f"\n{took_s}")  # noqa: T201

    assert max(took_s) < PROPAGATION_S
    assert [answer.status_code for answer in untouched_at] == [HTTPStatus.OK] * 2
    assert told["revoked"].status_code == HTTPStatus.UNAUTHORIZED
    assert told["suspended"].status_code == HTTPStatus.FORBIDDEN
    # The newcomer has no lease of anybody, and there is nobody to lend one.
    assert without_money.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    for name, (_, seen) in CHANGES.items():
        assert seen(await edges[0].infer(customers[name].key))
