"""What happens to charges whose answers were not delivered."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from pathlib import Path

import pytest
from busbar_contracts.gateway.v1.usage_pb2 import UsageRecord
from busbar_gateway.adapters.commit_table import CommitTable
from busbar_gateway.adapters.metrics import Metrics
from busbar_gateway.adapters.usage_log import UsageLog
from busbar_gateway.domain.failures import Unavailable
from busbar_gateway.usecases.calls import Answer, InferenceCall
from busbar_messaging.connection import close, connect
from busbar_messaging.topology import usage_subject
from busbar_runtime.pytest_plugin import NatsServer
from gateway_harness import (
    AUTH,
    REGION,
    TENANT,
    Platform,
    a_gateway,
    eventually,
    fresh_name,
    gateway_settings,
    request,
    stream_of,
)
from nats.aio.client import Client
from uuid_utils import uuid7


async def test_a_gateway_killed_before_delivery_takes_the_charge_back_when_it_starts(
    nats_server: NatsServer, provisioner: Client, keys: None, metrics: Metrics, tmp_path: Path
) -> None:
    settings = gateway_settings(nats_server, tmp_path)
    killed = uuid7().bytes
    table = CommitTable(tmp_path / f"commits-{settings.gateway_id}")
    table.claim(killed, TENANT)
    table.close()

    async with a_gateway(nats_server, provisioner, metrics, settings) as platform:
        await eventually(lambda: platform.gateway.usage.idle)
        [void] = (await platform.usage()).voids

    assert (void.request_id, void.tenant_id) == (killed, TENANT)
    assert void.reason


async def test_a_customer_gone_before_the_last_byte_is_not_charged(platform: Platform) -> None:
    name, _ = await platform.deploy()
    call = a_call(platform, name)

    with pytest.raises(ConnectionResetError):
        async with platform.serving.infer(call):
            raise ConnectionResetError

    await eventually(lambda: platform.gateway.usage.idle)
    usage = await platform.usage()
    assert [r.request_id for r in usage.records] == [call.request_id]
    assert [v.request_id for v in usage.voids] == [call.request_id]


async def test_records_that_come_together_are_written_together(platform: Platform) -> None:
    """One write and one fsync for all of them: alone each would wait its turn."""
    log = platform.gateway.usage
    requests = [uuid7().bytes for _ in range(32)]
    for request_id in requests:
        log.commit_later(log.claim(request_id, TENANT), UsageRecord(request_id=request_id))

    await eventually(lambda: log.idle)
    usage = await platform.usage()
    assert [one.request_id for one in usage.records] == requests
    assert usage.messages == 1


async def test_a_charge_stands_from_the_moment_before_its_answer_leaves(platform: Platform) -> None:
    """A kill after it leaves the charge, for the client may have the answer by then."""
    name, _ = await platform.deploy()
    usage = platform.gateway.usage
    async with platform.serving.infer(a_call(platform, name)) as answer:
        before = usage.idle
        answer.handing_over()
        after = usage.idle

    assert (before, after) == (False, True)
    assert not (await platform.usage()).voids


async def test_a_charge_that_stood_is_taken_back_when_its_answer_found_nobody(
    platform: Platform,
) -> None:
    name, _ = await platform.deploy()
    call = a_call(platform, name)

    async def gone(answer: Answer) -> None:
        answer.handing_over()
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        async with platform.serving.infer(call) as answer:
            await gone(answer)

    await eventually(lambda: platform.gateway.usage.idle)
    usage = await platform.usage()
    assert [v.request_id for v in usage.voids] == [call.request_id]


async def test_a_charge_that_was_taken_back_stays_so_though_an_error_leaves_in_its_place(
    platform: Platform,
) -> None:
    name, _ = await platform.deploy()
    call = a_call(platform, name)

    answers: list[Answer] = []
    with contextlib.suppress(ValueError):
        async with platform.serving.infer(call) as answer:
            answers.append(answer)
            raise ValueError("unreadable")
    answers[0].handing_over()  # what the edge tells at the error's last byte

    assert not platform.gateway.usage.idle
    await eventually(lambda: platform.gateway.usage.idle)
    assert [v.request_id for v in (await platform.usage()).voids] == [call.request_id]


async def test_an_answer_wanted_whole_is_free_until_it_is_settled(platform: Platform) -> None:
    name, agent = await platform.deploy(decoupled=True)
    agent.behaviour = stream_of(3)
    call = a_call(platform, name, whole=True)

    async with platform.serving.stream(call) as stream:
        async for _ in stream:
            break

    await eventually(lambda: platform.gateway.usage.idle)
    assert agent.works
    assert not (await platform.usage()).records


@pytest.mark.parametrize("holds_back", [False, True], ids=["only-the-end", "what-was-held-back"])
async def test_of_a_settled_stream_the_last_is_free_for_who_did_not_get_it(
    platform: Platform, *, holds_back: bool
) -> None:
    name, agent = await platform.deploy(decoupled=True)
    agent.behaviour = stream_of(3)
    call = a_call(platform, name)

    async def gone() -> None:
        async with platform.serving.stream(call) as stream:
            async for chunk in stream:
                if holds_back and chunk.output_tokens == 3:
                    stream.holds_back()
            await stream.settle()
            stream.handing_over()
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await gone()
    await eventually(lambda: platform.gateway.usage.idle)

    found = await platform.usage()
    charged = [one.output_tokens for one in found.records if one.request_id in found.charged]
    assert charged == [2 if holds_back else 3]
    assert len({one.request_id for one in found.records}) == len(found.records)


@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
async def test_who_leaves_a_stream_while_its_end_is_charged_pays_for_what_came(
    platform: Platform, *, whole: bool
) -> None:
    """Nothing but the end mark was missing; somebody else has nothing of an answer yet."""
    name, agent = await platform.deploy(decoupled=True)
    agent.behaviour = stream_of(3)
    call = a_call(platform, name, whole=whole)
    usage = platform.gateway.usage

    async def all_but_the_end() -> None:
        async with platform.serving.stream(call) as stream:
            async for _ in stream:
                pass
            await stream.settle()

    customer = asyncio.create_task(all_but_the_end())
    while usage.idle and not customer.done():
        await asyncio.sleep(0)
    customer.cancel()
    await asyncio.gather(customer, return_exceptions=True)
    await eventually(lambda: usage.idle)

    assert customer.cancelled()
    assert (await platform.usage()).charged == (set() if whole else {call.request_id})


async def test_a_charge_still_queued_is_dropped_without_a_trace(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    settings = gateway_settings(nats_server, tmp_path)
    client = await connect(settings, "test")
    table = CommitTable(tmp_path / "commits")
    log = UsageLog(
        client,
        table,
        subject=usage_subject(REGION, fresh_name("g")),
        gateway_id="g",
        give_up_after=timedelta(seconds=1),
        committed=lambda records, took_s: None,
    )
    commit = asyncio.create_task(
        log.commit(log.claim(uuid7().bytes, "t"), UsageRecord(), soon(), stays=never)
    )
    await asyncio.wait([commit], timeout=0.05)
    commit.cancel()  # nothing runs the log, so nothing was published
    await asyncio.gather(commit, return_exceptions=True)

    assert log.idle
    table.close()
    await close(client)


async def test_what_cannot_be_made_durable_is_refused_and_taken_back(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    settings = gateway_settings(nats_server, tmp_path)
    client = await connect(settings, "test")
    table = CommitTable(tmp_path / "commits")
    log = UsageLog(
        client,
        table,
        subject="busbar.usage.no.stream.takes.this",
        gateway_id="g",
        give_up_after=timedelta(seconds=0.2),
        committed=lambda records, took_s: None,
    )
    running = asyncio.create_task(log.run())
    with pytest.raises(Unavailable):
        await log.commit(log.claim(uuid7().bytes, "t"), UsageRecord(), soon(), stays=never)

    assert table.occupied_count == 1  # the void is tried until it succeeds
    running.cancel()
    table.close()
    await close(client)


async def test_a_gateway_that_has_ended_keeps_no_file_of_its_table(
    nats_server: NatsServer, provisioner: Client, metrics: Metrics, tmp_path: Path
) -> None:
    """Another with its name may start at once."""
    settings = gateway_settings(nats_server, tmp_path)
    async with a_gateway(nats_server, provisioner, metrics, settings) as platform:
        await platform.deploy()

    CommitTable(tmp_path / f"commits-{platform.gateway_id}").close()


def a_call(platform: Platform, name: str, *, whole: bool = False) -> InferenceCall:
    caller = platform.gateway.keys.authenticate(AUTH[0][1])
    return InferenceCall(
        request_id=uuid7().bytes,
        caller=caller,
        route=platform.gateway.routes.find(caller, name),
        payload=request(name),
        api="kserve.http.infer",
        received_unix_ns=0,
        deadline=asyncio.get_running_loop().time() + 10,
        whole=whole,
    )


def never() -> bool:
    return False


def soon() -> float:
    return asyncio.get_running_loop().time() + 10
