"""Money on the request's way: claimed in memory, asked for in time, never spent twice."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from busbar_contracts.gateway.v1.usage_pb2 import UsageRecord
from busbar_contracts.node.v1 import work_pb2
from busbar_gateway.domain.credit import Refused, Verdict, Wallet, judge
from busbar_gateway.domain.prices import SCALE
from busbar_gateway.usecases.crediting import WAIT_MAX_S
from gateway_harness import (
    Behaviour,
    Platform,
    Say,
    chunk,
    eventually,
    failing,
    request,
    response,
    show_life,
    stream_of,
    tenant_with,
)
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from lending import COMPUTE_CLASS, REQUEST_NANOS, TOKEN_NANOS

ECHO_NANOS = REQUEST_NANOS + 2 * TOKEN_NANOS
"""What the echoing agent's answer costs."""


def computing(compute_us: int) -> Behaviour:
    async def behave(work: work_pb2.InferenceWork, say: Say) -> None:
        timings = work_pb2.WorkTimings(compute_us=compute_us)
        await say(finished=work_pb2.WorkFinished(payload=response(work), timings=timings))

    return behave


async def codes_of(platform: Platform, model: str, auth: Any, count: int) -> list[str]:
    async def one() -> str:
        try:
            await platform.infer(request(model), auth=auth)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    return await asyncio.gather(*(one() for _ in range(count)))


async def records_of(platform: Platform, tenant_id: str) -> list[UsageRecord]:
    return [one for one in (await platform.usage()).records if one.tenant_id == tenant_id]


@pytest.mark.parametrize(
    ("refused", "elsewhere", "verdict"),
    [
        (Refused.BALANCE, 5, Verdict.WAIT),
        (Refused.BUDGET, 5, Verdict.WAIT),
        (Refused.BALANCE, 4, Verdict.REFUSE),
        (Refused.BUDGET, 4, Verdict.REFUSE),
        (Refused.SUSPENDED, 5, Verdict.REFUSE),
    ],
)
def test_what_other_gateways_hold_of_balance_or_budget_is_waited_for(
    refused: Refused, elsewhere: int, verdict: Verdict
) -> None:
    wallet = Wallet("t", refused=refused, refused_at=10.0, elsewhere_nanos=elsewhere)

    assert judge(wallet, 5, 10.1, billing_away=False) is verdict


async def test_sixty_four_at_once_spend_no_more_than_there_is(platform: Platform) -> None:
    model, _ = await platform.deploy()
    affordable = 10
    tenant_id, auth = await tenant_with(platform, affordable * ECHO_NANOS + 7)

    codes = await codes_of(platform, model, auth, 64)
    records = await records_of(platform, tenant_id)

    assert set(codes) <= {"OK", "RESOURCE_EXHAUSTED"}
    assert codes.count("OK") == len(records) == affordable
    assert {bytes(one.lease_id) for one in records} <= {
        ask.lease_id for ask in platform.billing.asks
    }


async def test_who_has_nothing_is_told_that_a_retry_is_in_vain(platform: Platform) -> None:
    model, agent = await platform.deploy()
    _, auth = await tenant_with(platform, 0)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await platform.infer(request(model), auth=auth)

    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "balance" in (refused.value.details() or "")
    assert agent.works == []
    trailing = dict(refused.value.trailing_metadata() or ())
    status = Status.FromString(trailing["grpc-status-details-bin"])  # pyright: ignore[reportArgumentType]
    name = ErrorInfo()
    [only] = status.details
    assert only.Unpack(name)
    assert (name.reason, name.domain) == ("INSUFFICIENT_QUOTA", "busbar")
    assert trailing["x-should-retry"] == "false"
    assert "retry-after" not in trailing


async def test_a_top_up_is_served_at_once(platform: Platform) -> None:
    model, _ = await platform.deploy()
    tenant_id, auth = await tenant_with(platform, 0)
    assert await codes_of(platform, model, auth, 1) == ["RESOURCE_EXHAUSTED"]
    platform.billing.balances[tenant_id] = 100 * ECHO_NANOS

    async def served() -> bool:
        return await codes_of(platform, model, auth, 1) == ["OK"]

    await eventually(served, within_s=2)


async def test_what_fails_gives_its_claim_back(platform: Platform) -> None:
    model, agent = await platform.deploy()
    tenant_id, auth = await tenant_with(platform, 2 * ECHO_NANOS)
    agent.behaviour = failing(work_pb2.FAILURE_KIND_REJECTED)
    assert await codes_of(platform, model, auth, 5) == ["INVALID_ARGUMENT"] * 5
    agent.behaviour = None

    assert await codes_of(platform, model, auth, 2) == ["OK", "OK"]
    assert await codes_of(platform, model, auth, 1) == ["RESOURCE_EXHAUSTED"]
    assert len(await records_of(platform, tenant_id)) == 2


async def test_what_a_dearer_price_puts_out_of_reach_is_refused_before_it_is_worked(
    platform: Platform,
) -> None:
    model, agent = await platform.deploy()
    _, auth = await tenant_with(platform, 20 * ECHO_NANOS)
    assert await codes_of(platform, model, auth, 3) == ["OK"] * 3
    await platform.billing.publish_prices(version=2, request_nanos=100 * REQUEST_NANOS)
    await eventually(
        lambda: (
            platform.gateway.prices.current.rates("", "USD", "", 0).request
            == 100 * REQUEST_NANOS * SCALE
        )
    )

    codes = await codes_of(platform, model, auth, 3)

    assert codes == ["RESOURCE_EXHAUSTED"] * 3
    assert len(agent.works) == 3


async def test_work_that_the_money_did_not_cover_is_not_worked_again(platform: Platform) -> None:
    model, agent = await platform.deploy(price_class=COMPUTE_CLASS)
    tenant_id, auth = await tenant_with(platform, 200_000)
    agent.behaviour = computing(1_000)
    assert await codes_of(platform, model, auth, 1) == ["OK"]
    agent.behaviour = computing(10**6)
    works = len(agent.works)

    in_vain = await codes_of(platform, model, auth, 1)
    again = await codes_of(platform, model, auth, 3)

    assert in_vain == ["RESOURCE_EXHAUSTED"]
    assert again == ["RESOURCE_EXHAUSTED"] * 3
    assert len(agent.works) == works + 1
    assert len(await records_of(platform, tenant_id)) == 1


async def test_requests_let_in_before_do_not_wipe_what_was_learned_in_vain(
    platform: Platform,
) -> None:
    model, agent = await platform.deploy(price_class=COMPUTE_CLASS, slots=8)
    _, auth = await tenant_with(platform, 200_000)
    agent.behaviour = computing(1_000)
    assert await codes_of(platform, model, auth, 1) == ["OK"]
    heavy_ended, answer = asyncio.Event(), computing(1_000)

    async def beside(work: work_pb2.InferenceWork, say: Say) -> None:
        await show_life(say, heavy_ended)
        await answer(work, say)

    agent.behaviour = beside
    small = asyncio.create_task(codes_of(platform, model, auth, 5))
    await eventually(lambda: len(agent.works) == 6)
    agent.behaviour = computing(10**6)
    in_vain = await codes_of(platform, model, auth, 1)
    heavy_ended.set()
    paid, works = await small, len(agent.works)
    again = await codes_of(platform, model, auth, 1)

    assert (in_vain, paid) == (["RESOURCE_EXHAUSTED"], ["OK"] * 5)
    assert again == ["RESOURCE_EXHAUSTED"]
    assert len(agent.works) == works


async def test_a_stream_of_which_nothing_could_be_paid_is_not_worked_again(
    platform: Platform,
) -> None:
    model, agent = await platform.deploy(decoupled=True, price_class=COMPUTE_CLASS)
    tenant_id, auth = await tenant_with(platform, REQUEST_NANOS + 250_000)

    async def behave(work: work_pb2.InferenceWork, say: Say) -> None:
        part = chunk(work, 0)
        part.compute_us = 10**6
        await say(chunk=part)

    agent.behaviour = behave
    answers = list[bytes]()
    for _ in range(3):
        call = platform.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(
            timeout=10, metadata=auth
        )
        await call.write(request(model))
        await call.done_writing()
        answers += [answer async for answer in call]

    assert all(b"add credit" in answer for answer in answers)
    assert len(answers) == 3
    assert len(agent.works) == 1
    assert await records_of(platform, tenant_id) == []


async def test_what_is_left_is_spent_although_requests_like_it_cost_more(
    platform: Platform,
) -> None:
    model, agent = await platform.deploy(price_class=COMPUTE_CLASS)
    tenant_id, auth = await tenant_with(platform, 50_000)
    agent.behaviour = computing(1_000)

    codes = [code for _ in range(26) for code in await codes_of(platform, model, auth, 1)]

    assert codes == ["OK"] * 25 + ["RESOURCE_EXHAUSTED"]  # likely is 0.1 s of compute
    assert len(await records_of(platform, tenant_id)) == 25


async def test_a_billing_that_is_busy_for_seconds_is_waited_for(platform: Platform) -> None:
    model, _ = await platform.deploy()
    _, auth = await tenant_with(platform, 1_000 * ECHO_NANOS)
    platform.billing.answers_after_s = 2.2
    codes = await codes_of(platform, model, auth, 3)
    platform.billing.answers_after_s = 0.0

    assert codes == ["OK"] * 3
    assert not platform.gateway.credit.billing_away


async def test_without_billing_it_serves_what_was_lent_and_then_says_503(
    platform: Platform,
) -> None:
    model, _ = await platform.deploy()
    _, auth = await tenant_with(platform, 1_000 * ECHO_NANOS)
    assert await codes_of(platform, model, auth, 1) == ["OK"]
    platform.billing.silent = True
    lent = platform.gateway.credit.held_nanos

    codes: list[str] = []
    while "UNAVAILABLE" not in codes:
        codes += await codes_of(platform, model, auth, 4)
    platform.billing.silent = False

    assert lent >= ECHO_NANOS
    assert set(codes) == {"OK", "UNAVAILABLE"}
    assert codes.count("OK") == lent // ECHO_NANOS

    async def served() -> bool:
        return await codes_of(platform, model, auth, 1) == ["OK"]

    await eventually(served)


async def test_a_lease_that_billing_closed_is_replaced(platform: Platform) -> None:
    model, _ = await platform.deploy()
    tenant_id, auth = await tenant_with(platform, 1_000 * ECHO_NANOS)
    assert await codes_of(platform, model, auth, 1) == ["OK"]
    platform.billing.leases.clear()
    platform.gateway.credit.recall([tenant_id])

    codes = [code for _ in range(20) for code in await codes_of(platform, model, auth, 1)]

    assert codes == ["OK"] * 20
    await eventually(lambda: platform.billing.leases)


async def test_who_is_recalled_gives_back_what_it_does_not_use(platform: Platform) -> None:
    model, _ = await platform.deploy()
    tenant_id, auth = await tenant_with(platform, 1_000 * ECHO_NANOS)
    assert await codes_of(platform, model, auth, 1) == ["OK"]

    await platform.billing.recall(tenant_id)

    def given_back() -> bool:
        mine = [ask for ask in platform.billing.asks if ask.tenant_id == tenant_id]
        return any(ask.returned_nanos for ask in mine)

    await eventually(given_back)


async def test_a_stream_ends_where_the_money_ends_and_what_was_delivered_is_charged(
    platform: Platform,
) -> None:
    model, agent = await platform.deploy(decoupled=True)
    tenant_id, auth = await tenant_with(platform, REQUEST_NANOS + 4 * TOKEN_NANOS)

    async def behave(work: work_pb2.InferenceWork, say: Any) -> None:
        for sequence in range(50):
            await say(chunk=chunk(work, sequence))

    agent.behaviour = behave
    began = time.monotonic()
    call = platform.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(
        timeout=10, metadata=auth
    )
    await call.write(request(model))
    await call.done_writing()
    answers = [answer async for answer in call]
    took_s = time.monotonic() - began

    async def charged() -> list[UsageRecord]:
        return await records_of(platform, tenant_id)

    [record] = await eventually(charged)
    assert b"add credit" in answers[-1]
    assert len(answers) - 1 == 4 == record.output_tokens
    assert took_s < WAIT_MAX_S, "it waited for money that only it claimed"


@pytest.mark.parametrize(
    ("compute_us", "at_the_end_us", "delivered"),
    [
        pytest.param([100_000, 200_000, 300_000], 300_000, 2, id="while it streams"),
        pytest.param([1_000, 2_000, 3_000], 400_000, 3, id="only at its end"),
    ],
)
async def test_compute_that_the_money_does_not_cover_ends_a_stream_and_what_it_delivered_is_charged(
    platform: Platform, compute_us: list[int], at_the_end_us: int, delivered: int
) -> None:
    model, agent = await platform.deploy(decoupled=True, price_class=COMPUTE_CLASS)
    tenant_id, auth = await tenant_with(platform, REQUEST_NANOS + 250_000)

    async def behave(work: work_pb2.InferenceWork, say: Any) -> None:
        for sequence, until_now_us in enumerate(compute_us):
            part = chunk(work, sequence)
            part.compute_us = until_now_us
            await say(chunk=part)
        timings = work_pb2.WorkTimings(compute_us=at_the_end_us)
        await say(finished=work_pb2.WorkFinished(chunk_count=len(compute_us), timings=timings))

    agent.behaviour = behave
    call = platform.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(
        timeout=10, metadata=auth
    )
    await call.write(request(model))
    await call.done_writing()
    answers = [answer async for answer in call]

    async def charged() -> list[UsageRecord]:
        return await records_of(platform, tenant_id)

    [record] = await eventually(charged)
    assert b"add credit" in answers[-1]
    assert len(answers) - 1 == delivered
    assert record.compute_us == compute_us[delivered - 1]
    assert not (await platform.usage()).voids


async def test_a_stream_that_costs_more_than_guessed_is_charged_in_full(
    platform: Platform,
) -> None:
    model, agent = await platform.deploy(decoupled=True)
    tenant_id, auth = await tenant_with(platform, 10**6)
    agent.behaviour = stream_of(40)
    call = platform.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(
        timeout=10, metadata=auth
    )
    await call.write(request(model))
    await call.done_writing()
    answers = [answer async for answer in call]

    [record] = await records_of(platform, tenant_id)
    assert len(answers) == 40 == record.output_tokens
    cost = REQUEST_NANOS + 40 * TOKEN_NANOS
    held = platform.gateway.credit.held_nanos
    assert held == platform.billing.held(tenant_id) - cost


async def test_leaving_returns_the_leases(platform: Platform) -> None:
    model, _ = await platform.deploy()
    tenant_id, auth = await tenant_with(platform, 1_000 * ECHO_NANOS)
    assert await codes_of(platform, model, auth, 3) == ["OK"] * 3

    await platform.gateway.credit.close()

    assert not any(one.tenant_id == tenant_id for one in platform.billing.leases.values())
    assert platform.billing.balances[tenant_id] == 997 * ECHO_NANOS
