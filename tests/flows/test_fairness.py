"""Two tenants on one model of a real platform, one with 64 clients and one with 2."""

from __future__ import annotations

import asyncio
import io
import random
import tarfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from busbar_runtime.platform import Platform
from harness.operator import Customer, Operator
from harness.polling import eventually
from tritonclient.grpc import service_pb2

BUNDLE = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "models" / "slow-echo"
MODEL = "slow-echo-narrow"
SLOTS = 3
"""The small tenant's two clients can use half of them, and leave none idle that are theirs."""
DELAY_MS = (220, 380)
"""Unequal, so that the slots do not all become free in the same moment."""
ALONE_S, TOGETHER_S, SETTLE_S = 4.0, 10.0, 2.0
HALF_AT_LEAST = 0.35
_METHOD = "/inference.GRPCInferenceService/ModelInfer"


def narrow_bundle() -> bytes:
    """slow-echo under another name and with few slots."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(BUNDLE.rglob("*")):
            if not path.is_file() or "__pycache__" in path.parts:
                continue
            content = path.read_bytes()
            if path.name in {"busbar.yaml", "config.pbtxt"}:
                text = content.decode().replace("slow-echo", MODEL)
                content = text.replace("slots: 16", f"slots: {SLOTS}").encode()
            info = tarfile.TarInfo(str(path.relative_to(BUNDLE)))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def body(draws: random.Random) -> bytes:
    message: Any = service_pb2.ModelInferRequest(model_name=MODEL)
    message.inputs.add(name="INPUT0", datatype="FP32", shape=[4])
    message.raw_input_contents.append(np.arange(4, dtype=np.float32).tobytes())
    message.inputs.add(name="delay_ms", datatype="INT32", shape=[1])
    message.raw_input_contents.append(
        np.array([draws.randint(*DELAY_MS)], dtype=np.int32).tobytes()
    )
    return message.SerializeToString()


class Load:
    """Clients of one tenant, each with one request at a time."""

    def __init__(self, address: str, customer: Customer, clients: int) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._metadata = (("authorization", f"Bearer {customer.key}"),)
        self._clients = clients
        self._draws = random.Random(clients)
        self.answered: list[tuple[float, float]] = []
        """When each answer came, and how long it took."""

    async def run(self, seconds: float) -> None:
        """Ask until the time is over; every request must be answered."""
        until = time.monotonic() + seconds
        try:
            await asyncio.gather(*(self._client(until) for _ in range(self._clients)))
        finally:
            await self._channel.close()

    async def _client(self, until: float) -> None:
        call = self._channel.unary_unary(_METHOD)
        while (began := time.monotonic()) < until:
            await call(body(self._draws), timeout=30, metadata=self._metadata)
            self.answered.append((time.monotonic(), time.monotonic() - began))

    def took_s(self, since: float, before: float) -> list[float]:
        return sorted(took for at, took in self.answered if since <= at < before)


def p99(took_s: list[float]) -> float:
    return took_s[min(len(took_s) - 1, int(len(took_s) * 0.99))]


async def deploy(platform: Platform, operator: Operator, customer: Customer) -> None:
    await operator.json(
        "scheduler",
        "POST",
        "/admin/v1/bundles",
        content=narrow_bundle(),
        headers={"content-type": "application/x-tar"},
    )
    declared = {"bundle": MODEL, "replicas": 1, "regions": [], "tenants": []}
    await operator.json("scheduler", "PUT", f"/admin/v1/deployments/{MODEL}", json=declared)
    async with grpc.aio.insecure_channel(platform.endpoints["grpc"]) as channel:
        call = channel.unary_unary(_METHOD)

        async def answers() -> bool:
            with suppress(grpc.aio.AioRpcError):
                metadata = (("authorization", f"Bearer {customer.key}"),)
                await call(body(random.Random(1)), timeout=5, metadata=metadata)
                return True
            return False

        await eventually(answers, within_s=30, what=f"{MODEL} serves")


async def test_a_flood_leaves_a_small_tenant_its_half_and_its_pace(
    platform: Platform, operator: Operator
) -> None:
    small, large = await operator.customer(), await operator.customer()
    address = platform.endpoints["grpc"]
    await deploy(platform, operator, small)
    try:
        alone = Load(address, small, 2)
        began = time.monotonic()
        await alone.run(ALONE_S)
        alone_p99_s = p99(alone.took_s(began, began + ALONE_S))

        flood, few = Load(address, large, 64), Load(address, small, 2)
        began = time.monotonic()
        await asyncio.gather(flood.run(TOGETHER_S), few.run(TOGETHER_S))
    finally:
        await operator.call("scheduler", "DELETE", f"/admin/v1/deployments/{MODEL}")

    window = began + SETTLE_S, began + TOGETHER_S
    of_flood, of_few = flood.took_s(*window), few.took_s(*window)
    share = len(of_few) / (len(of_few) + len(of_flood))
    seen = f"share {share:.2f}, p99 {p99(of_few):.3f} s, alone {alone_p99_s:.3f} s"
    print(seen)  # noqa: T201
    assert HALF_AT_LEAST <= share <= 1 - HALF_AT_LEAST, seen
    assert p99(of_few) <= 2 * alone_p99_s, seen
