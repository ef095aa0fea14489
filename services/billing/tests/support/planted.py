"""A ledger in which much has happened, and copies of it to do harm to."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
from billing_parts import WARRANT_KEY, WARRANTS
from busbar_billing.adapters.auditor import id_at
from busbar_billing.adapters.postgres.adjustments import Adjustments
from busbar_billing.adapters.postgres.audit_inbox import AuditedInbox
from busbar_billing.adapters.postgres.audit_journal import AuditedJournal
from busbar_billing.adapters.postgres.audit_prices import AuditedPrices
from busbar_billing.adapters.postgres.audit_seals import AuditSeals
from busbar_billing.adapters.postgres.audit_standing import AuditedStanding
from busbar_billing.adapters.postgres.audit_statements import AuditedStatements
from busbar_billing.adapters.postgres.audit_work import AuditedWork
from busbar_billing.adapters.postgres.database import Database as Pool
from busbar_billing.adapters.postgres.journal import Journal
from busbar_billing.adapters.postgres.leases import Leases
from busbar_billing.adapters.postgres.measured import MeasuredWork
from busbar_billing.adapters.postgres.payments import Payments
from busbar_billing.adapters.postgres.posting import Ledger
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.adapters.postgres.statements import Statements
from busbar_billing.adapters.postgres.tenants import Tenants
from busbar_billing.domain import ledger
from busbar_billing.domain.audit.answers import Delivered
from busbar_billing.domain.audit.findings import Breach, Report
from busbar_billing.domain.leases import Ask
from busbar_billing.domain.payments import Payment
from busbar_billing.domain.prices import Component, Price, PriceBook, Tier
from busbar_billing.domain.statements import close, month_of
from busbar_billing.domain.usage import Outcome, UsageRecord, UsageVoid
from busbar_billing.usecases.adjustments import (
    WantedCredit,
    expire_credits,
    grant_credit,
    refund_charge,
)
from busbar_billing.usecases.audit import LAST_ID, Books, audit
from busbar_billing.usecases.audit_answers import Answers, Extent
from busbar_billing.usecases.audit_seals import Closed, Seals
from busbar_billing.usecases.leases import Asker, answer_asks
from busbar_billing.usecases.payments import POSTED, ProviderEvent, take_event
from busbar_billing.usecases.post_usage import post_usage
from busbar_contracts.node.v1.status_pb2 import WorkMeasured, WorkMeasuredBatch
from busbar_runtime.pytest_plugin import Database
from uuid_utils.compat import uuid7

ENERGY_PRICE = """
    INSERT INTO energy_prices (site, effective_from, currency, kwh_nanos, created_at)
    VALUES ('r1/s1', now() - interval '1 hour', 'USD', 123456789, now() - interval '2 hours')
"""
TENANT, OTHER = "acme", "umbrella"
PAYMENT = "stripe:pi_1"
MOMENT = timedelta(milliseconds=1)
"""Within which ids are in no order."""
DAY_NS = 24 * 3600 * 10**9


def id_of(moment: datetime) -> UUID:
    """A UUIDv7 as it is made at a moment."""
    return UUID(int=id_at(moment).int | uuid7().int & (1 << 80) - 1)


def later_id() -> UUID:
    """Of an hour from now, so that it comes after all of a ledger."""
    return id_of(datetime.now(UTC) + timedelta(hours=1))


def record(tenant_id: str = TENANT, **changes: object) -> UsageRecord:
    """A record of 1,000 input tokens, admitted now."""
    now_ns = time.time_ns()
    plain = UsageRecord(
        request_id=uuid7(),
        tenant_id=tenant_id,
        key_id="key_test",
        deployment="tiny-lm",
        price_class="chat-small",
        api="openai.chat",
        outcome=Outcome.COMPLETED,
        admitted_unix_ns=now_ns,
        finished_unix_ns=now_ns,
        input_tokens=1_000,
        output_tokens=10,
        request_bytes=100,
        response_bytes=100,
        compute_us=1_000,
        node="r1.s1.n1",
        attempt=1,
        gateway_id="g1",
        traceparent="",
    )
    return replace(plain, **changes)  # pyright: ignore[reportArgumentType]


@dataclass
class Messages:
    """A stream of deliveries in memory."""

    kept: dict[int, Delivered] = field(default_factory=dict[int, Delivered])
    first: int = 1
    posting: set[int] = field(default_factory=set[int])
    """Messages whose posting is under way."""
    copied: int | None = None
    """Up to where the copy goes that is read; None: as far as its leader's."""

    async def extent(self) -> Extent:
        posted = min(self.posting) - 1 if self.posting else max(self.kept, default=0)
        return Extent(self.first, posted, datetime(2026, 1, 1, tzinfo=UTC))

    async def read(self, after: int, upto: int, limit: int) -> list[Delivered]:
        last = upto if self.copied is None else min(upto, self.copied)
        found = [one for number, one in sorted(self.kept.items()) if after < number <= last]
        return found[:limit]

    async def read_again(self, sequence: int) -> Delivered | None:
        return self.kept.get(sequence)

    def add(
        self, records: Sequence[UsageRecord], voids: Sequence[UsageVoid] = ()
    ) -> list[UsageRecord]:
        """One more message; returns its records as they come out of it."""
        number = max(self.kept, default=0) + 1
        said = [replace(one, stream_sequence=number) for one in records]
        self.kept[number] = Delivered(number, said, [one.request_id for one in voids])
        return said


@dataclass(frozen=True)
class Parts:
    """The stores of one database, and what was delivered to it."""

    pool: Pool
    stream: Messages = field(default_factory=Messages)

    @property
    def prices(self) -> Prices:
        return Prices(self.pool, WARRANTS)

    @property
    def posting(self) -> Ledger:
        return Ledger(self.pool, Journal(self.pool, WARRANTS), self.prices)

    @property
    def books(self) -> Books:
        prices = self.prices
        return Books(
            AuditedPrices(self.pool, prices, WARRANT_KEY),
            AuditedJournal(self.pool, prices, WARRANT_KEY),
            AuditedStanding(self.pool),
            Answers(self.stream, AuditedInbox(self.pool, prices)),
            AuditedWork(self.pool),
            AuditedStatements(self.pool, prices, WARRANT_KEY),
        )

    async def post(
        self,
        *records: UsageRecord,
        voids: Sequence[UsageVoid] = (),
        new_id: Callable[[], UUID] = uuid7,
    ) -> None:
        """Post a batch, of which nothing may be refused."""
        delivered = self.stream.add(records, voids)
        number = max(self.stream.kept)
        self.stream.posting.add(number)
        report = await post_usage(self.posting, delivered, voids, new_id)
        assert not report.refused
        self.stream.posting.discard(number)

    @property
    def seals(self) -> Seals:
        """Of a few rows each."""
        return Seals(AuditSeals(self.pool), b"a key of the tests", piece=4)

    async def closed(self, seals: Seals | None = None) -> Closed:
        """What is sealed and as it was."""
        return await (seals or self.seals).look(
            id_at(datetime.now(UTC) + MOMENT), lambda _rows: None
        )

    async def audited_from_seals(self) -> list[Breach]:
        """What an audit finds that relies on seals; where it is clean, all there is is sealed."""
        closed = await self.closed()
        report = Report()
        await audit(self.books, LAST_ID, report, lambda _check, _rows: None, closed)
        if not report.total:
            await self.seals.keep(closed)
        return report.breaches

    async def audited(self, settled: UUID = LAST_ID, books: Books | None = None) -> list[Breach]:
        """What an audit from zero finds."""
        report = Report()
        await audit(books or self.books, settled, report, lambda _check, _rows: None)
        return report.breaches


async def make_busy(parts: Parts) -> None:
    """Let everything happen once: tiers, own prices, leases, credit, voids, refunds, debts."""
    pool, journal = parts.pool, Journal(parts.pool, WARRANTS)
    tenants = Tenants(pool, parts.prices)
    adjustments = Adjustments(pool, journal)
    for name in (TENANT, OTHER):
        async with pool.transaction() as connection:
            await connection.execute(
                "INSERT INTO tenants (tenant_id, name, currency) VALUES ($1, $1, 'USD')", name
            )
        paid = ledger.top_up(uuid7(), name, 10**10, "USD", "first")
        await journal.post_once(paid)
    for told in (_told(TENANT, paid_nanos=5 * 10**9), _told("", refunded_nanos=10**9)):
        event = ProviderEvent(f"evt_{uuid7().hex}", "test", b"{}", told)
        assert await take_event(Payments(pool, journal), event, uuid7) == POSTED
    await parts.prices.add(_tiered())
    credit = WantedCredit(TENANT, 50_000, "USD", "welcome", time.time_ns() + DAY_NS)
    await grant_credit(adjustments, tenants, credit, uuid7(), time.time_ns())
    short = WantedCredit(OTHER, 70_000, "USD", "short", time.time_ns() + 10**7)
    await grant_credit(adjustments, tenants, short, uuid7(), time.time_ns())
    asks = [Ask(TENANT, want_nanos=10**8), Ask(OTHER, want_nanos=10**8)]
    leases = Leases(pool, journal)
    now_ms = time.time_ns() // 10**6
    granted = await answer_asks(leases, Asker("g1", "run"), asks, uuid7, now_ms)
    held = {one.grant.tenant_id: one.grant.lease for one in granted}
    mine, theirs = held[TENANT], held[OTHER]
    assert mine is not None
    assert theirs is not None
    leased = [record(lease_id=mine.lease_id) for _ in range(5)]
    foreign = [record(OTHER, lease_id=theirs.lease_id) for _ in range(3)]
    plain = [record(), record(price_class="not in the book"), record(compute_us=0)]
    await parts.post(*leased, *foreign, *plain)
    await parts.post(*leased[:2])  # again
    await parts.post(voids=[UsageVoid(leased[0].request_id, TENANT, "not delivered")])
    await refund_charge(
        adjustments,
        request_id=plain[0].request_id,
        amount_nanos=1_000,
        reference="sorry",
        reason="slow",
        transfer_id=uuid7(),
    )
    async with pool.transaction() as connection:
        await connection.execute(ENERGY_PRICE)
    await measure(pool, [*leased, *foreign], run="run-1")
    await measure(pool, [replace(record(), attempt=2), *plain[:1]], run="run-2")
    await expire_credits(adjustments, uuid7, time.time_ns() + 10**9)
    await _issue_statement(Statements(pool, journal, parts.prices), TENANT)


async def _issue_statement(statements: Statements, tenant_id: str) -> None:
    """Of the present month, as if it were over."""
    cut_at = await statements.cut()
    addressing = await statements.addressing(tenant_id)
    facts = await statements.facts(tenant_id, month_of(cut_at), cut_at, None)
    await statements.issue(tenant_id, cut_at, addressing, close(facts, addressing.tax))


async def measure(pool: Pool, worked: Sequence[UsageRecord], *, run: str) -> None:
    """What a node tells of these requests."""
    batch = WorkMeasuredBatch(
        node="r1.s1.n1",
        agent_run_id=run,
        first_sequence=1,
        records=[
            WorkMeasured(
                request_id=one.request_id.bytes,
                attempt=one.attempt,
                tenant_id=one.tenant_id,
                deployment=one.deployment,
                finished=True,
                energy_mj=1_234_567,
                energy_measured=True,
                ended_unix_ms=time.time_ns() // 10**6 + 1,
            )
            for one in worked
        ],
    )
    await MeasuredWork(pool, Journal(pool, WARRANTS)).add([batch], uuid7)


def _told(tenant_id: str, **facts: int) -> Payment:
    """What a payment provider tells."""
    return Payment(PAYMENT, "USD", tenant_id, **facts)


def _tiered() -> PriceBook:
    """Prices of one tenant with an allowance and tiers, from now on."""
    steps = Price(100, 1, free_units=1_500, tiers=(Tier(2_500, 70, 1),))
    classes = {
        "default": {Component.REQUEST: Price(1_000, 1)},
        "chat-small": {Component.INPUT_TOKEN: steps, Component.OUTPUT_TOKEN: Price(333, 1_000)},
    }
    return PriceBook(0, "USD", time.time_ns(), 10, classes, tenant_id=TENANT)


async def copy_of(original: Database) -> Database:
    """A copy of a database, which nobody may be using."""
    name = f"test_{secrets.token_hex(8)}"
    server, _, source = original.admin_dsn.rpartition("/")
    service = original.billing_dsn.rpartition("/")[0]
    connection = await asyncpg.connect(f"{server}/postgres")
    await connection.execute(f"CREATE DATABASE {name} TEMPLATE {source}")
    await connection.close()
    return Database(f"{server}/{name}", f"{service}/{name}")


async def plant(database: Database, *statements: str, fetch: str = "SELECT ''") -> str:
    """Do what no role may: past every trigger. Returns what `fetch` says of the row beforehand."""
    connection = await asyncpg.connect(database.admin_dsn)
    found = str(await connection.fetchval(fetch))
    await connection.execute("SET session_replication_role = replica")
    for statement in statements:
        await connection.execute(statement)
    await connection.close()
    return found
