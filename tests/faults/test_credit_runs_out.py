"""Billing gone: requests go on from what was lent, then wait for billing, and nobody is cut off."""

from __future__ import annotations

import secrets
from http import HTTPStatus
from typing import Any

import grpc
import httpx
import numpy as np
from busbar_runtime.platform import Platform
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from harness.operator import Operator
from harness.polling import eventually
from tritonclient.grpc import service_pb2

PAID_IN_NANOS, REQUEST_NANOS = 4_000_000, 50_000
LENT_AT_MOST = PAID_IN_NANOS // REQUEST_NANOS
_METHOD = "/inference.GRPCInferenceService/ModelInfer"


class Client:
    """One customer, over both APIs."""

    def __init__(self, platform: Platform, key: str) -> None:
        request: Any = service_pb2.ModelInferRequest(model_name="echo-fp32")
        request.raw_input_contents.append(np.arange(16, dtype=np.float32).tobytes())
        request.inputs.add(name="INPUT0", datatype="FP32", shape=[16])
        self._body = request.SerializeToString()
        self._metadata = (("authorization", f"Bearer {key}"),)
        self._channel = grpc.aio.insecure_channel(platform.endpoints["grpc"])
        self._http = httpx.AsyncClient(
            base_url=platform.endpoints["http"],
            headers={"authorization": f"Bearer {key}"},
            timeout=20,
            trust_env=False,
            verify=False,
        )

    async def tensors(self) -> grpc.aio.AioRpcError | None:
        """One request; the error that it ended in."""
        try:
            await self._channel.unary_unary(_METHOD)(
                self._body, timeout=20, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            return error
        return None

    async def embeddings(self) -> httpx.Response:
        body = {"model": "all-minilm-l6-v2", "input": "who is there"}
        return await self._http.post("/v1/embeddings", json=body)

    async def close(self) -> None:
        await self._channel.close()
        await self._http.aclose()


async def customer_of_small_means(operator: Operator) -> str:
    """A key of a tenant that pays the same for every request and has little."""
    name = f"small-{secrets.token_hex(4)}"
    made = await operator.json("billing", "POST", "/admin/v1/tenants", json={"name": name})
    tenant_id: str = made["tenant_id"]
    prices = {"default": {"request": {"amount_nanos": REQUEST_NANOS, "per_units": 1}}}
    await operator.prices(tenant_id, prices)
    paid = {"amount_nanos": PAID_IN_NANOS, "currency": "USD", "reference": name}
    await operator.json("billing", "POST", f"/admin/v1/tenants/{tenant_id}/topups", json=paid)
    return (await operator.key(tenant_id))["key"]


async def test_without_billing_requests_go_on_until_the_lease_is_spent_and_then_wait(
    platform: Platform, operator: Operator
) -> None:
    client = Client(platform, await customer_of_small_means(operator))

    async def served() -> bool:
        return await client.tensors() is None

    await eventually(served, within_s=20, what="the customer is served")
    await platform.stop("billing")
    answered, error = 0, await client.tensors()
    while error is None:
        answered += 1
        assert answered < LENT_AT_MOST
        error = await client.tensors()
    over_http = await client.embeddings()

    print(f"\n{answered} requests were answered without billing")  # noqa: T201
    assert answered >= 2
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    trailing: dict[str, Any] = dict(error.trailing_metadata() or ())
    retry = RetryInfo()
    details = Status.FromString(trailing["grpc-status-details-bin"]).details
    assert any(one.Unpack(retry) for one in details)
    assert retry.retry_delay.ToTimedelta().total_seconds() > 0
    assert over_http.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    assert over_http.json()["error"]["type"] == "server_error"
    assert int(over_http.headers["retry-after"]) >= 1
    assert "x-should-retry" not in over_http.headers

    await platform.start("billing")
    await eventually(served, within_s=30, what="the customer is served again")
    assert (await client.embeddings()).is_success
    await client.close()
