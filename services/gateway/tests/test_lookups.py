"""Keys, limits and balances are looked up in memory, without any I/O."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from busbar_contracts.billing.v1.tenants_pb2 import TenantPolicy
from busbar_gateway.usecases.calls import InferenceCall
from busbar_messaging import topology
from gateway_harness import Platform, eventually, request, tenant_with

_IO = ("open", "os.", "socket.", "subprocess.", "sqlite3.", "ctypes.dlopen", "urllib.")
_seen: list[str] | None = None


def _note(event: str, _arguments: object) -> None:
    if _seen is not None and event.startswith(_IO):
        _seen.append(event)


sys.addaudithook(_note)


@contextmanager
def noted_io() -> Iterator[list[str]]:
    """Audit events of I/O inside the block, and a line when anything was read or written."""
    global _seen  # noqa: PLW0603 - a hook cannot be taken away again
    gc.collect()
    events: list[str] = []
    looking = -_transfers() + _transfers()  # what a look itself reads
    before = _transfers()
    _seen = events
    try:
        yield events
    finally:
        _seen = None
    if _transfers() - before > looking:
        events.append("read or write")


def _transfers() -> int:
    """System calls of this thread that read or wrote."""
    lines = Path("/proc/thread-self/io").read_text().splitlines()
    counts = dict(line.split(": ") for line in lines)
    return int(counts["syscr"]) + int(counts["syscw"])


def test_the_notes_would_show_io() -> None:
    with noted_io() as events:
        Path("/dev/null").write_bytes(b"x")

    assert {"open", "read or write"} <= set(events)


async def test_key_limits_and_balance_are_looked_up_without_io(platform: Platform) -> None:
    model, _ = await platform.deploy()
    tenant_id, auth = await tenant_with(platform, 10**9)
    await platform.infer(request(model), auth=auth)
    gateway = platform.gateway
    bucket = await platform.provisioner.jetstream().key_value(topology.TENANTS.name)
    policy = TenantPolicy(tenant_id=tenant_id, requests_per_minute=10**6)
    await bucket.put(tenant_id, policy.SerializeToString())
    await eventually(lambda: gateway.policies.current(tenant_id).limited)
    route = gateway.routes.current(model)
    assert route is not None
    caller = gateway.keys.authenticate(auth[0][1])
    call = InferenceCall(bytes(16), caller, route, request(model), "kserve.grpc.infer", 0, 1e9)
    sent = gateway.client.stats["out_msgs"]
    with noted_io() as events:
        for _ in range(100):
            assert gateway.keys.authenticate(auth[0][1]) is caller
            assert gateway.collaborators.limiting.enter(call) is not None
            claimed = gateway.credit.claim(call)
            assert claimed is not None
            gateway.credit.release(claimed)

    assert events == []
    assert gateway.client.stats["out_msgs"] == sent
