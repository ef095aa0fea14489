"""Whose charge waits for others' to be written with, and whose does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import monotonic

import pytest
from busbar_contracts.gateway.v1.usage_pb2 import UsageRecord
from busbar_gateway.adapters import usage_log
from busbar_gateway.adapters.commit_table import CommitTable
from busbar_gateway.adapters.usage_log import UsageLog
from busbar_messaging.connection import close, connect
from busbar_messaging.topology import usage_subject
from busbar_runtime.pytest_plugin import NatsServer
from gateway_harness import REGION, TENANT, fresh_name, gateway_settings
from nats.aio.client import Client
from uuid_utils import uuid7

ROUNDS = 5
LONG_S = 1.0
"""Far more than a commit takes: who waited for company shows."""


@dataclass
class Running:
    """A log that would wait long for company."""

    log: UsageLog
    task: asyncio.Task[None]
    commits: list[int]
    """How many records each message had."""

    async def commit(self) -> None:
        request_id = uuid7().bytes
        record = UsageRecord(request_id=request_id)
        slot = self.log.claim(request_id, TENANT)
        soon = asyncio.get_running_loop().time() + 10
        self.log.delivered(await self.log.commit(slot, record, soon, stays=lambda: False))

    async def rounds(self) -> None:
        """A customer who asks again as soon as there is an answer."""
        for _ in range(ROUNDS):
            await self.commit()


@pytest.fixture
async def running(
    nats_server: NatsServer,
    provisioner: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Running]:
    monkeypatch.setattr(usage_log, "_GATHER_S", LONG_S)
    client = await connect(gateway_settings(nats_server, tmp_path), "test")
    table = CommitTable(tmp_path / "commits")
    commits: list[int] = []
    log = UsageLog(
        client,
        table,
        subject=usage_subject(REGION, fresh_name("g")),
        gateway_id="g",
        give_up_after=timedelta(seconds=5),
        committed=lambda records, took_s: commits.append(records),
    )
    task = asyncio.create_task(log.run())
    yield Running(log, task, commits)
    task.cancel()
    table.close()
    await close(client)


@pytest.mark.parametrize("customers", [1, 2, 3])
async def test_a_few_customers_never_wait_for_each_other(running: Running, customers: int) -> None:
    began = monotonic()
    await asyncio.gather(*[running.rounds() for _ in range(customers)])

    assert monotonic() - began < LONG_S


async def test_after_four_the_next_leaves_with_the_fourth(running: Running) -> None:
    await asyncio.gather(*[running.commit() for _ in range(4)])
    began = monotonic()
    first = asyncio.create_task(running.commit())
    await asyncio.wait([first], timeout=0.05)
    alone = not first.done()
    await asyncio.gather(first, *[running.commit() for _ in range(3)])

    assert alone
    assert monotonic() - began < LONG_S
    assert running.commits == [4, 4]


async def test_nobody_waits_for_company_longer_than_a_moment(running: Running) -> None:
    await asyncio.gather(*[running.commit() for _ in range(4)])
    began = monotonic()
    await running.commit()
    waited = monotonic() - began
    await running.commit()

    assert LONG_S <= waited < 2 * LONG_S
    assert monotonic() - began < waited + LONG_S
    assert running.commits == [4, 1, 1]


async def test_nothing_is_written_when_who_waited_for_company_has_left(running: Running) -> None:
    await asyncio.gather(*[running.commit() for _ in range(4)])
    lone = asyncio.create_task(running.commit())
    await asyncio.wait([lone], timeout=0.05)
    lone.cancel()
    ended, _ = await asyncio.wait([running.task], timeout=1.5 * LONG_S)
    await running.commit()

    assert not ended
    assert running.commits == [4, 1]
