"""kill -9 of each part in turn, under steady load.

Afterwards every request was answered or failed clearly within its deadline, the
platform serves again by itself within 15 s, every answered request is charged
exactly once, and no failed one is. Streams of both APIs are under way when it happens.
"""

from __future__ import annotations

import signal
import time

import psutil
import pytest
from busbar_runtime.platform import Platform
from harness.audit import assert_audit_clean
from harness.operator import PAID_IN_NANOS, Customer, Json, Operator
from harness.polling import eventually
from harness.steady_load import GRPC_CLIENTS, Clients, LoadLog, steady_load

RECOVERY_S = 15.0
STREAMS = 1
LEASED_AFTER_S = 2.0
"""By then the gateway knows what the customer spends, and has credit for a minute of it."""
"""Of each API that streams: always in flight, since no client pauses."""
STARTED_S = 60
"""For what no request waits for."""
GRPC_APIS, NAMELESS_API = "kserve.grpc.", "kserve.grpc.stream"
UNWRITTEN_MAX = GRPC_CLIENTS + STREAMS
SERVING_WITHOUT = ("billing", "scheduler", "telemetry", "postgres")
"""Parts that no request needs: while they are gone not one may fail."""


def triton_pid(platform: Platform) -> int:
    """The Triton that the node agent supervises."""
    agent = psutil.Process(platform.pids["node-agent"])
    return next(c.pid for c in agent.children(recursive=True) if "tritonserver" in c.name())


async def hurt(platform: Platform, part: str) -> None:
    """kill -9, from outside of whoever supervises it."""
    if part == "triton":
        psutil.Process(triton_pid(platform)).send_signal(signal.SIGKILL)
    else:
        await platform.kill(part, signal.SIGKILL)


async def served(log: LoadLog, count: int, within_s: float, what: str, since: float) -> None:
    async def answered() -> int:
        return log.answered_since(since)

    await eventually(answered, within_s=within_s, what=what, until=lambda n: n >= count)


async def charged_unanswered(
    operator: Operator, customer: Customer, log: LoadLog, *, unwritten_max: int = 0
) -> list[Json]:
    """The records of requests that are charged and were not answered, once every answered one is
    charged, each once, and the customer's balance is what that left.

    A charge that was durable when its gateway was killed before the last byte is taken back by
    the gateway's next start: until then it stands. What stays is at most `unwritten_max` answers
    over gRPC (ADR 36); this raises AssertionError when it is more. A stream over gRPC tells
    nobody its request id: of these the numbers are compared.
    """
    answered = {request.request_id for request in log.answered if request.request_id}
    nameless = sum(not request.request_id for request in log.answered)

    async def look() -> tuple[bool, list[Json], int]:
        usage = await operator.usage(customer.tenant_id)
        charged = [one for one in usage if one["amount_nanos"] and not one["voided"]]
        names = {one["request_id"] for one in charged}
        assert len(names) == len(charged), "charged twice"
        paid = PAID_IN_NANOS - await operator.balance(customer.tenant_id)
        streams = [one for one in charged if one["api"] == NAMELESS_API]
        unanswered = streams[nameless:]
        unanswered += [x for x in charged if x["request_id"] not in answered and x not in streams]
        complete = answered <= names and len(streams) >= nameless
        return complete, unanswered, paid - sum(one["amount_nanos"] for one in charged)

    def settled(found: tuple[bool, list[Json], int]) -> bool:
        complete, unanswered, unexplained_nanos = found
        over_grpc = all(one["api"].startswith(GRPC_APIS) for one in unanswered)
        few = len(unanswered) <= unwritten_max and over_grpc
        return complete and few and unexplained_nanos == 0

    _, unanswered, _ = await eventually(
        look,
        within_s=30,
        what=f"charges for the {len(log.answered)} answered requests",
        until=settled,
    )
    return unanswered


@pytest.mark.parametrize(
    "part",
    ["gateway", "node-agent", "triton", "nats", "billing", "scheduler", "telemetry", "postgres"],
)
async def test_a_killed_part_costs_nobody_more_than_a_clear_error(
    platform: Platform, operator: Operator, part: str
) -> None:
    customer = await operator.customer()
    clients = Clients(platform.endpoints["grpc"], platform.endpoints["http"], customer.key)
    began = time.monotonic()
    async with steady_load(clients, streams_of_each=STREAMS) as log:
        await served(log, 50, 30, "the load runs before the fault", since=began + LEASED_AFTER_S)
        fault_at = time.monotonic()
        await hurt(platform, part)
        await served(log, 50, RECOVERY_S + 5, "the platform serves again", since=fault_at + 0.5)
        await operator.billing_answers(within_s=STARTED_S)
        await served(log, 50, 10, "the load goes on", since=time.monotonic())
    await clients.close()
    print(  # noqa: T201
        f"\n{part}: {log.summary()}; served again after {log.recovery_s(fault_at):.1f} s, "
        f"longest gap {log.longest_gap_s(fault_at):.1f} s"
    )

    log.assert_clear_and_in_time()
    assert log.recovery_s(fault_at) <= RECOVERY_S
    if part in SERVING_WITHOUT:
        outlived = [
            r for r in log.answered if not r.request_id and r.at - r.took_s < fault_at < r.at
        ]
        assert log.failed == [], log.summary()
        assert len(outlived) == STREAMS, "a stream was in flight when the part was killed"
    unwritten_max = UNWRITTEN_MAX if part == "gateway" else 0
    unanswered = await charged_unanswered(operator, customer, log, unwritten_max=unwritten_max)
    assert len(unanswered) <= unwritten_max
    assert {one["api"] for one in unanswered} <= {"kserve.grpc.infer", NAMELESS_API}
    await assert_audit_clean(platform)


async def test_a_hung_triton_is_noticed_and_replaced(
    platform: Platform, operator: Operator
) -> None:
    customer = await operator.customer()
    clients = Clients(platform.endpoints["grpc"], platform.endpoints["http"], customer.key)
    before = triton_pid(platform)
    async with steady_load(clients) as log:
        await served(log, 20, 30, "the load runs before the fault", since=time.monotonic())
        fault_at = time.monotonic()
        psutil.Process(before).send_signal(signal.SIGSTOP)

        async def gone() -> bool:
            return not psutil.pid_exists(before)

        await eventually(gone, within_s=6, what="the hung Triton is killed")
        await served(log, 20, RECOVERY_S + 5, "the platform serves again", since=fault_at + 5)
    await clients.close()

    log.assert_clear_and_in_time()
    assert log.recovery_s(fault_at) <= RECOVERY_S + 5
    assert await charged_unanswered(operator, customer, log) == []
    await assert_audit_clean(platform)
