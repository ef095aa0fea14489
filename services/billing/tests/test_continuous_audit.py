"""The audit that never ends: each breach is told once, and it goes on from anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import planted
import pytest
from billing_parts import WARRANTS
from busbar_billing.adapters.auditor import id_at
from busbar_billing.adapters.bus.events import Events
from busbar_billing.adapters.continuous_audit import ContinuousAudit
from busbar_billing.adapters.http.audit import show_standing
from busbar_billing.adapters.on_duty import OnDuty
from busbar_billing.adapters.postgres.audit_walks import AuditWalks
from busbar_billing.adapters.postgres.duties import Duties, Duty
from busbar_billing.domain.audit.findings import Breach, Check, Report
from busbar_billing.settings import Settings
from busbar_billing.usecases.audit_walk import Walk, follow, sweep
from busbar_contracts.billing.v1.events_pb2 import AuditBreached
from busbar_messaging.connection import BusSettings, close, connect
from busbar_messaging.topology import event_subject
from busbar_runtime.pytest_plugin import Database, NatsServer
from harness.polling import eventually
from nats.aio.client import Client
from nats.aio.msg import Msg
from planted import Parts, record
from pydantic import ValidationError
from uuid_utils.compat import uuid7

DAY = timedelta(days=1)
BALANCE_OFF = "UPDATE account_balances SET balance_nanos = balance_nanos {} 5 WHERE account_id = 1"


@dataclass
class Told:
    """Who listens."""

    breaches: list[str] = field(default_factory=list[str])

    def audit_breached(self, breach: Breach, found_unix_ms: int) -> None:
        assert found_unix_ms > 0
        self.breaches.append(breach.fingerprint)


@pytest.fixture
def told() -> Told:
    return Told()


def test_an_audit_without_any_pause_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"audit_interval\n +Input should be greater than 0"):
        Settings(audit_interval=timedelta(0))  # pyright: ignore[reportCallIssue]


def auditor(busy: Parts, told: Told | Events, sweep_every: timedelta = DAY) -> ContinuousAudit:
    every = timedelta(minutes=5)  # so that a look has the time that it needs
    walks = AuditWalks(busy.pool)
    duty = OnDuty(Duties(busy.pool), Duty.AUDIT)
    return ContinuousAudit(busy.books, walks, told, every, sweep_every, duty, timedelta(0))


async def harm(database: Database, statement: str) -> None:
    connection = await asyncpg.connect(database.admin_dsn)
    await connection.execute("SET session_replication_role = replica")
    await connection.execute(statement)
    await connection.close()


async def test_what_is_new_is_looked_at_once(busy: Parts) -> None:
    walk = Walk(datetime.now(UTC))
    rows: list[int] = []
    for batch in ([], [record(), record("umbrella")], []):
        if batch:
            await busy.post(*batch)
        report = Report()
        assert await follow(busy.books, walk, uuid7(), report, lambda: True)
        assert report.breaches == []
        rows.append(report.of(Check.CHARGES_RATED_AGAIN).rows)

    assert rows == [11, 2, 0]


async def test_a_walk_stopped_anywhere_is_carried_on_by_another(busy: Parts) -> None:
    walks, report, settled = AuditWalks(busy.pool), Report(), uuid7()
    steps = 0
    while True:
        walk = await walks.load("sweep") or Walk(datetime.now(UTC))
        turns = iter([True, False])
        done = await sweep(busy.books, walk, settled, report, lambda t=turns: next(t))
        await walks.save("sweep", walk)
        steps += 1
        if done:
            break

    assert steps >= 5
    assert report.of(Check.MONTHS_ADD_UP).rows == 2
    assert report.of(Check.WORK_JOINED).rows == 10
    assert report.breaches == []
    assert report.of(Check.CHARGES_RATED_AGAIN).rows == 11
    assert report.of(Check.RECORDS_CHARGED_ONCE).rows == 11
    assert report.of(Check.ANSWERS_CHARGED).rows == 13  # two of them were told twice


async def test_a_breach_is_told_once_and_again_after_it_was_gone(
    ledger_copy: Database, busy: Parts, told: Told
) -> None:
    audit = auditor(busy, told, sweep_every=timedelta(0))
    await audit.look(datetime.now(UTC))
    assert told.breaches == []

    await harm(ledger_copy, BALANCE_OFF.format("+"))
    for _ in range(3):
        await audit.look(datetime.now(UTC))
    known = await audit.walks.standing()
    assert told.breaches == ["transfers_balanced currency USD", "balances_replayed account 1"]
    assert {one.subject for one in known.breaches} == {"currency USD", "account 1"}

    await harm(ledger_copy, BALANCE_OFF.format("-"))
    await audit.look(datetime.now(UTC))
    assert (await audit.walks.standing()).breaches == []

    await harm(ledger_copy, BALANCE_OFF.format("+"))
    await audit.look(datetime.now(UTC))
    assert told.breaches == 2 * told.breaches[:2]


async def test_a_planted_breach_is_heard_on_the_bus(
    ledger_copy: Database, busy: Parts, bus: Client, nats_server: NatsServer
) -> None:
    heard: list[AuditBreached] = []

    async def note(message: Msg) -> None:
        heard.append(AuditBreached.FromString(message.data))

    async def so_far() -> list[AuditBreached]:
        return heard

    await bus.subscribe(event_subject("billing", "audit_breached"), cb=note)
    await bus.flush()
    async with billings_events(nats_server) as events:
        audit = auditor(busy, events, sweep_every=timedelta(0))
        await harm(ledger_copy, BALANCE_OFF.format("+"))
        await audit.look(datetime.now(UTC))
        told = await eventually(
            so_far, within_s=30, what="both are heard", until=lambda them: len(them) == 2
        )

    assert [(one.check, one.subject) for one in told] == [
        ("transfers_balanced", "currency USD"),
        ("balances_replayed", "account 1"),
    ]
    assert all(one.detail and one.found_unix_ms for one in told)


@asynccontextmanager
async def billings_events(nats_server: NatsServer) -> AsyncIterator[Events]:
    """What billing tells the bus, with no more rights there than it has."""
    settings = BusSettings(
        nats_url=nats_server.url,
        nats_user="billing",
        nats_password=nats_server.credentials["billing"],  # pyright: ignore[reportArgumentType]
    )
    client = await connect(settings, "billing-events")
    events = Events(client)
    publishing = asyncio.create_task(events.run())
    try:
        yield events
    finally:
        publishing.cancel()
        await close(client)


async def test_old_rows_are_found_by_the_next_audit_from_zero(
    ledger_copy: Database, busy: Parts, told: Told
) -> None:
    audit = auditor(busy, told)
    now = datetime.now(UTC)
    await audit.look(now)
    await harm(
        ledger_copy, "UPDATE usage_records SET output_tokens = 77 WHERE tenant_id = 'umbrella'"
    )
    await audit.look(now + timedelta(minutes=1))
    assert told.breaches == []

    await audit.look(now + 2 * DAY)
    assert len(told.breaches) == 6  # rated to another amount, and not as they were delivered
    assert {one.split()[0] for one in told.breaches} == {"charges_rated_again", "answers_charged"}


async def test_a_database_whose_clock_is_ahead_is_not_audited_from_zero_all_the_time(
    ledger_copy: Database, busy: Parts, told: Told
) -> None:
    audit = auditor(busy, told)
    await audit.look(datetime.now(UTC))
    swept_at = (await audit.walks.standing()).swept_at
    await harm(ledger_copy, "UPDATE audit_walks SET changed_at = now() + interval '1 hour'")
    await audit.look(datetime.now(UTC))

    assert swept_at is not None
    assert (await audit.walks.standing()).swept_at == swept_at


@pytest.mark.parametrize("sweeping", [False, True])
async def test_after_a_clock_was_ahead_what_is_new_is_looked_at(
    ledger_copy: Database, busy: Parts, told: Told, *, sweeping: bool
) -> None:
    audit = auditor(busy, told)
    await audit.look(datetime.now(UTC) + 9 * DAY)
    if sweeping:  # and the sweep under way, not ended
        ahead = Walk(datetime.now(UTC) + 9 * DAY, replayed={1: 5}, touched={1})
        await audit.walks.save("sweep", ahead)
    await harm(ledger_copy, "UPDATE audit_walks SET changed_at = now() + interval '9 days'")
    late = record()
    await busy.post(late)
    await harm(
        ledger_copy,
        f"UPDATE usage_records SET output_tokens = 1010 WHERE request_id = '{late.request_id}'",
    )
    by_another = auditor(busy, told)
    await by_another.look(datetime.now(UTC))
    now = datetime.now(UTC)
    await by_another.look(now)

    name = f"req_{late.request_id.hex}"
    assert f"charges_rated_again {name}" in told.breaches
    assert {one.split()[1] for one in told.breaches} == {name}
    known = show_standing(await audit.walks.standing(), datetime.now(UTC))
    assert known.followed_to is not None
    assert known.followed_to <= now
    assert known.lag_s is not None
    assert 0 <= known.lag_s < DAY.total_seconds()
    assert known.swept_at is not None
    assert known.swept_at <= now
    assert name in {one.subject for one in known.breaches}


async def test_what_is_committed_behind_the_mark_is_no_breach(busy: Parts, told: Told) -> None:
    ids = [uuid7() for _ in range(3)]
    audit = auditor(busy, told)
    await audit.look(datetime.now(UTC))
    late = planted.ledger.top_up(ids[0], planted.TENANT, 100, "USD", "late")
    await planted.Journal(busy.pool, WARRANTS).post_once(late)
    await audit.look(datetime.now(UTC))
    await busy.post(record())
    await audit.look(datetime.now(UTC))

    assert told.breaches == []


async def test_a_stream_that_was_made_anew_is_read_from_its_beginning(busy: Parts) -> None:
    walk = Walk(datetime.now(UTC))
    await follow(busy.books, walk, uuid7(), Report(), lambda: True)
    before = walk.mark
    walk.mark = replace(before, message=10_000, stream_created_at=None)
    await follow(busy.books, walk, uuid7(), Report(), lambda: True)

    assert walk.mark.message == before.message


@pytest.mark.parametrize("off", [timedelta(hours=1), -timedelta(hours=1), 60 * DAY, -60 * DAY])
async def test_ids_made_by_a_clock_that_is_off_are_no_breach(busy: Parts, off: timedelta) -> None:
    made_at = datetime.now(UTC) + off
    request_id = UUID(int=id_at(made_at).int | 7 << 76 | 2 << 62 | 1)
    await busy.post(record(request_id=request_id))
    breaches = await busy.audited()

    report, walk = Report(), Walk(datetime.now(UTC))
    assert await sweep(busy.books, walk, uuid7(), report, lambda: True)
    assert breaches == report.breaches == []
    assert report.of(Check.RECORDS_CHARGED_ONCE).rows == 12
