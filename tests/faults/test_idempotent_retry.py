"""A gateway killed with a keyed request in hand: the customer's retry is charged once."""

from __future__ import annotations

import asyncio
import secrets
import signal
from http import HTTPStatus
from typing import Any

import httpx
from busbar_runtime.platform import Platform
from harness.audit import assert_audit_clean
from harness.operator import Operator
from harness.polling import eventually

MODEL = "slow-echo"
DELAY_MS = 5_000
"""Long enough to find the request in hand and kill its gateway."""
BODY: dict[str, Any] = {
    "inputs": [
        {"name": "INPUT0", "datatype": "FP32", "shape": [4], "data": [1.0, 2.0, 3.0, 4.0]},
        {"name": "delay_ms", "datatype": "INT32", "shape": [1], "data": [DELAY_MS]},
    ]
}
IN_FLIGHT = f'busbar_gateway_in_flight{{deployment="{MODEL}"}}'


async def test_a_retry_after_the_gateway_was_killed_is_answered_and_charged_once(
    platform: Platform, operator: Operator
) -> None:
    customer = await operator.customer()
    keyed = {
        "authorization": f"Bearer {customer.key}",
        "idempotency-key": secrets.token_hex(8),
    }
    async with (
        httpx.AsyncClient(
            base_url=platform.endpoints["http"],
            headers=keyed,
            timeout=30,
            trust_env=False,
            verify=False,
        ) as client,
        httpx.AsyncClient(
            base_url=platform.endpoints["ops"]["gateway"], timeout=30, trust_env=False, verify=False
        ) as ops,
    ):

        async def ask() -> httpx.Response | None:
            try:
                answer = await client.post(f"/v2/models/{MODEL}/infer", json=BODY)
            except httpx.HTTPError:
                return None
            return answer if answer.status_code == HTTPStatus.OK else None

        first = asyncio.create_task(ask())

        async def in_hand() -> bool:
            metrics = (await ops.get("/metrics")).text
            return any(
                line.startswith(IN_FLIGHT) and float(line.split()[-1]) > 0
                for line in metrics.splitlines()
            )

        await eventually(in_hand, within_s=10, what="the request is in hand")
        assert not first.done()
        await platform.kill("gateway", signal.SIGKILL)
        assert await first is None
        answer = await eventually(ask, within_s=45, what="the retry is answered")
        again = await ask()

    assert answer is not None
    assert again is not None
    assert again.content == answer.content
    await operator.usage_of(answer.headers["x-request-id"])
    charged = [r for r in await operator.usage(customer.tenant_id) if r["amount_nanos"]]
    assert [record["request_id"] for record in charged] == [answer.headers["x-request-id"]]
    await assert_audit_clean(platform)
