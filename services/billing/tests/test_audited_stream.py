"""The auditor reads USAGE again from a real bus, with no more rights than billing has."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from billing_parts import WARRANTS, Gateway, Service
from busbar_billing.adapters.bus.answers import DeliveredAnswers
from busbar_billing.adapters.postgres.audit_inbox import AuditedInbox
from busbar_billing.adapters.postgres.database import open_database
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.domain.audit.findings import Report
from busbar_billing.usecases.audit_answers import Answers, Extent, check_answers
from busbar_messaging.connection import BusSettings, close, connect
from busbar_runtime.pytest_plugin import Database, NatsServer
from harness.polling import eventually
from nats.aio.client import Client
from pydantic import SecretStr


@pytest.fixture
async def answers(nats_server: NatsServer, bus: Client) -> AsyncIterator[DeliveredAnswers]:
    del bus
    settings = BusSettings(
        nats_url=nats_server.url,
        nats_user="billing",
        nats_password=SecretStr(nats_server.credentials["billing"]),
    )
    client = await connect(settings, "auditor-tests")
    yield DeliveredAnswers(client)
    await close(client)


async def test_messages_are_read_in_order_and_in_batches(
    answers: DeliveredAnswers, gateway: Gateway, tenant: str
) -> None:
    records = [gateway.record(tenant) for _ in range(7)]
    numbers = [await gateway.publish(one) for one in records]
    await gateway.publish(voids=(gateway.void(records[0]),))
    await gateway.publish_raw(b"\xff")

    after, last = numbers[0] - 1, numbers[-1] + 2
    first = await answers.read(after, last, 4)
    rest = await answers.read(first[-1].sequence, last, 100)
    found = [*first, *rest]
    assert len(first) == 4
    assert [one.sequence for one in found] == list(range(after + 1, last + 1))
    told = [one.request_id.bytes for message in found for one in message.records]
    assert told == [one.request_id for one in records]
    assert [one.bytes for one in found[-2].voids] == [records[0].request_id]
    assert found[-1].records == []
    assert await answers.read(last, last + 5, 10) == []
    assert await answers.read_again(numbers[2]) == found[2]
    assert await answers.read_again(last + 1_000) is None


async def test_what_the_running_service_posted_is_what_was_delivered(
    billing: Service,
    gateway: Gateway,
    tenant: str,
    answers: DeliveredAnswers,
    database: Database,
) -> None:
    records = [gateway.record(tenant, cached_tokens=3, lease_id=b"x" * 16) for _ in range(3)]
    first = await gateway.publish(*records[:2])
    await gateway.publish(records[2], voids=(gateway.void(records[2]),))
    off = gateway.record(tenant)  # by a clock that is an hour ahead: read alike by both
    off.admitted_unix_ns += 3_600 * 10**9
    off.finished_unix_ns += 3_600 * 10**9
    last = await gateway.publish(off)
    await billing.posted(tenant, 4)

    async def posted() -> Extent:
        return await answers.extent()

    extent = await eventually(
        posted, within_s=15, what="all is acknowledged", until=lambda now: now.posted >= last
    )
    async with open_database(database.billing_dsn) as pool:
        inbox = AuditedInbox(pool, Prices(pool, WARRANTS))
        report = Report()
        both = Answers(answers, inbox)
        await check_answers(both, first - 1, extent, report, lambda _check, _rows: None)

    assert report.breaches == []
    assert [finding.rows for _, finding in report.findings] == [4, 4]
