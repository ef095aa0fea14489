"""Composition root: read settings, build the parts, serve until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

import structlog
import uvloop
from busbar_errors import Unavailable
from busbar_messaging.background import end, rest_s
from busbar_messaging.connection import close, connect
from busbar_messaging.topology import BILLING_USAGE, billing_measured_consumer
from busbar_observability.logs import configure_logging
from busbar_observability.open_files import make_room
from busbar_observability.ops import ops_application, serve_http
from busbar_observability.tracing import configure_tracing, flush_tracing
from nats.aio.client import Client

from busbar_billing.adapters import metrics
from busbar_billing.adapters.auditor import Auditor
from busbar_billing.adapters.balance_watch import BalanceWatch
from busbar_billing.adapters.budget_watch import watch_budgets
from busbar_billing.adapters.bus.answers import DeliveredAnswers
from busbar_billing.adapters.bus.backlog import UsageStream
from busbar_billing.adapters.bus.consuming import Consumer
from busbar_billing.adapters.bus.credit_leases import LeaseDesk, Recalls, Reclaimer
from busbar_billing.adapters.bus.events import Events
from busbar_billing.adapters.bus.fresh_usage import FreshUsage
from busbar_billing.adapters.bus.key_directory import KeyDirectory
from busbar_billing.adapters.bus.measured import MeasuredWriter
from busbar_billing.adapters.bus.mirrored_bucket import keep_equal
from busbar_billing.adapters.bus.policy_directory import PolicyDirectory
from busbar_billing.adapters.bus.price_directory import PriceDirectoryBucket
from busbar_billing.adapters.bus.usage import UsagePoster
from busbar_billing.adapters.continuous_audit import ContinuousAudit
from busbar_billing.adapters.http.app import Parts, account_application, admin_application
from busbar_billing.adapters.http.payments import PaymentProvider
from busbar_billing.adapters.ids import new_id
from busbar_billing.adapters.key_use import KeyUse
from busbar_billing.adapters.monthly_close import MonthlyClose
from busbar_billing.adapters.on_duty import OnDuty
from busbar_billing.adapters.postgres.adjustments import Adjustments
from busbar_billing.adapters.postgres.audit_inbox import AuditedInbox
from busbar_billing.adapters.postgres.audit_journal import AuditedJournal
from busbar_billing.adapters.postgres.audit_prices import AuditedPrices
from busbar_billing.adapters.postgres.audit_seals import AuditSeals
from busbar_billing.adapters.postgres.audit_standing import AuditedStanding
from busbar_billing.adapters.postgres.audit_statements import AuditedStatements
from busbar_billing.adapters.postgres.audit_walks import AuditWalks
from busbar_billing.adapters.postgres.audit_work import AuditedWork
from busbar_billing.adapters.postgres.balance_watches import BalanceWatches
from busbar_billing.adapters.postgres.budgets import Budgets
from busbar_billing.adapters.postgres.database import Database, open_database
from busbar_billing.adapters.postgres.deliveries import Deliveries
from busbar_billing.adapters.postgres.duties import Duties, Duty
from busbar_billing.adapters.postgres.energy import EnergyPrices
from busbar_billing.adapters.postgres.invoicing import Invoicing
from busbar_billing.adapters.postgres.journal import Journal
from busbar_billing.adapters.postgres.keys import Keys
from busbar_billing.adapters.postgres.leakage import Leakage
from busbar_billing.adapters.postgres.leases import Leases
from busbar_billing.adapters.postgres.measured import MeasuredWork
from busbar_billing.adapters.postgres.payments import Payments
from busbar_billing.adapters.postgres.plans import Plans
from busbar_billing.adapters.postgres.posting import Ledger
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.adapters.postgres.projects import Projects
from busbar_billing.adapters.postgres.promotions import Credits
from busbar_billing.adapters.postgres.reading import Reader
from busbar_billing.adapters.postgres.rollups import Rollups
from busbar_billing.adapters.postgres.statements import Statements
from busbar_billing.adapters.postgres.tenants import Tenants
from busbar_billing.adapters.postgres.warrants import Warrants
from busbar_billing.adapters.postgres.webhooks import Webhooks
from busbar_billing.adapters.webhooks.courier import Courier, Posts
from busbar_billing.domain.audit.seals import sealing_key
from busbar_billing.domain.warrants import warrant_key
from busbar_billing.domain.web_targets import TargetPolicy
from busbar_billing.settings import Settings
from busbar_billing.usecases.adjustments import expire_credits
from busbar_billing.usecases.audit import Books
from busbar_billing.usecases.audit_answers import Answers
from busbar_billing.usecases.audit_seals import Seals
from busbar_billing.usecases.post_usage import RatedRecord, Uncovered

log = structlog.get_logger()

_PROBE_INTERVAL_S = 3.0
_EXPIRE_INTERVAL_S = 15.0
_STOP_GRACE_S = 10.0
_COLLECT_EVERY_OBJECTS = 10_000
Stop: TypeAlias = "asyncio.Future[None]"
"""Done: told to stop. Failed: a part ended by a bug."""

_FLUSH_TIMEOUT = timedelta(seconds=2)


async def serve(settings: Settings, stop: Stop) -> None:
    """Serve until `stop` is done, then finish what is in hand."""
    tracer = configure_tracing("billing", settings.otel_exporter_otlp_endpoint)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(flush_tracing, tracer)
        dsn = settings.postgres_dsn.get_secret_value()
        database = await stack.enter_async_context(open_database(dsn))
        client = await connect(settings, "billing")
        stack.push_async_callback(close, client)
        wanted = asyncio.Event()
        hmac_secret = settings.key_hmac_secret.get_secret_value().encode()
        parts = build(database, client, wanted, settings)
        stack.push_async_callback(parts.auditor.close)
        await stack.enter_async_context(background(parts.events.run(), stop))
        stack.push_async_callback(parts.events.flush, _FLUSH_TIMEOUT)
        key_use = KeyUse(parts.keys)
        ledger = Ledger(database, parts.journal, parts.prices)
        balance_watch = BalanceWatch(parts.watches, parts.events)
        listeners = Listeners(parts.events, key_use, balance_watch)
        poster = UsagePoster(ledger, listeners, tracer, new_id)
        usage = Consumer(client, BILLING_USAGE, poster.handle, database.wait_until_reachable)
        leases = Leases(database, parts.journal)
        desk = LeaseDesk(client, leases, new_id, refused=balance_watch.refused)
        auditing = OnDuty(parts.duties, Duty.AUDIT)
        for work in (
            auditing.run(),
            *closing_months(parts, settings),
            keep_equal([parts.policies.bucket, parts.directory.bucket], wanted),
            parts.price_directory.run(),
            probe(database),
            desk.run(),
            Reclaimer(client, leases, leases, new_id, unanswered=lambda: desk.unanswered).run(),
            FreshUsage(client, usage.far_behind, poster.handle).run(),
            expire(parts.adjustments),
            key_use.run(),
            watch_budgets(parts.budgets, parts.events),
            balance_watch.run(),
            courier(database, parts, hmac_secret).run(),
            ContinuousAudit(
                parts.auditor.books,
                parts.audit_walks,
                parts.events,
                settings.audit_interval,
                settings.audit_sweep_interval,
                auditing,
            ).run(),
        ):
            await stack.enter_async_context(background(work, stop))
        measured = measured_consumers(settings, client, parts)
        await stack.enter_async_context(consuming([usage, *measured], stop))
        token = settings.operator_token.get_secret_value()
        admin = admin_application(parts, token, hmac_secret)
        account = account_application(parts, hmac_secret, key_use.used)
        ops = ops_application(lambda: not_ready(database, client))
        host, share = settings.http_host, make_room(listeners=3)
        await stack.enter_async_context(
            serve_http(admin, host, settings.http_port, connections_max=share)
        )
        await stack.enter_async_context(
            serve_http(account, host, settings.account_port, connections_max=share)
        )
        await stack.enter_async_context(
            serve_http(ops, host, settings.ops_port, connections_max=share)
        )
        spare_the_collector()
        log.info("billing serves", http_port=settings.http_port, ops_port=settings.ops_port)
        await stop
        log.info("billing stops")


def spare_the_collector() -> None:
    """What was made at start stays, and what a posting makes is no garbage before its end: looking
    through all of it again and again was a sixth of a posting."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY_OBJECTS, 20, 20)


def build(database: Database, client: Client, wanted: asyncio.Event, settings: Settings) -> Parts:
    """The leaves. `wanted` is set when the buckets should be compared with the database."""
    secret = settings.key_hmac_secret.get_secret_value()
    vouching = warrant_key(secret)
    warrants = Warrants(vouching)
    prices = Prices(database, warrants)
    keys = Keys(database)
    journal = Journal(database, warrants)
    plans = Plans(database)
    policies = PolicyDirectory(client, plans, wanted)
    return Parts(
        database=database,
        tenants=Tenants(database, prices),
        projects=Projects(database),
        keys=keys,
        plans=plans,
        budgets=Budgets(database),
        journal=journal,
        adjustments=Adjustments(database, journal),
        credits=Credits(database),
        leakage=Leakage(database),
        auditor=Auditor(
            audited(database, client, vouching), Seals(AuditSeals(database), sealing_key(secret))
        ),
        audit_walks=AuditWalks(database),
        duties=Duties(database),
        energy=EnergyPrices(database),
        prices=prices,
        reader=Reader(database),
        rollups=Rollups(database),
        policies=policies,
        recalls=Recalls(client),
        directory=KeyDirectory(client, keys, policies, wanted),
        statements=Statements(database, journal, prices),
        invoicing=Invoicing(database),
        backlog=UsageStream(client),
        price_directory=PriceDirectoryBucket(client, prices),
        events=Events(client),
        payments=Payments(database, journal),
        watches=BalanceWatches(database, settings.low_balance_nanos),
        webhooks=Webhooks(database),
        targets=TargetPolicy(settings.webhook_allow_http, tuple(settings.webhook_allowed_networks)),
        provider=payment_provider(settings),
    )


def audited(database: Database, client: Client, vouching: bytes) -> Books:
    """What is audited, with prices of its own: what posting remembers is not what is kept."""
    prices = Prices(database, Warrants(vouching))
    return Books(
        AuditedPrices(database, prices, vouching),
        AuditedJournal(database, prices, vouching),
        AuditedStanding(database),
        Answers(DeliveredAnswers(client), AuditedInbox(database, prices)),
        AuditedWork(database),
        AuditedStatements(database, prices, vouching),
    )


def closing_months(parts: Parts, settings: Settings) -> list[Coroutine[Any, Any, None]]:
    """What closes months by itself, where that is wanted."""
    if not settings.close_automatically:
        return []
    duty = OnDuty(parts.duties, Duty.CLOSE_MONTHS)
    monthly = MonthlyClose(
        parts.statements, parts.backlog, duty, settings.close_delay, settings.close_interval
    )
    return [duty.run(), monthly.run()]


def courier(database: Database, parts: Parts, service_secret: bytes) -> Courier:
    """Who delivers webhooks; what it sends with is loaded with the first message."""

    def open_poster() -> Posts:
        from busbar_billing.adapters.webhooks.posting import Poster  # noqa: PLC0415

        return Poster(parts.targets)

    deliveries = Deliveries(database)
    return Courier(deliveries, parts.events, parts.targets, service_secret, open_poster)


def payment_provider(settings: Settings) -> PaymentProvider:
    """Stripe, where it is configured: whoever does without it need not load its SDK."""
    key, secret = settings.stripe_api_key, settings.stripe_webhook_secret
    if key is None and secret is None:
        return PaymentProvider()
    from busbar_billing.adapters.stripe_payments import (  # noqa: PLC0415
        StripeCheckout,
        event_reader,
    )

    return PaymentProvider(
        StripeCheckout(key.get_secret_value(), settings.stripe_api_base) if key else None,
        event_reader(secret.get_secret_value()) if secret else None,
    )


def measured_consumers(settings: Settings, client: Client, parts: Parts) -> list[Consumer]:
    """The measured work of every site."""
    able = parts.database.wait_until_reachable
    writer = MeasuredWriter(MeasuredWork(parts.database, parts.journal), new_id)
    measured = [billing_measured_consumer(*site) for site in settings.site_pairs]
    return [Consumer(client, spec, writer.handle, able) for spec in measured]


@dataclass(frozen=True, slots=True)
class Listeners:
    """Everybody who is told of charges."""

    events: Events
    key_use: KeyUse
    balance_watch: BalanceWatch

    def usage_posted(self, charged: Sequence[RatedRecord]) -> None:
        """Charges were posted."""
        self.events.usage_posted(charged)
        self.key_use.usage_posted(charged)
        self.balance_watch.usage_posted(charged)

    def charges_uncovered(self, uncovered: Sequence[Uncovered]) -> None:
        """Charges came that no lease covered."""
        self.events.charges_uncovered(uncovered)


def not_ready(database: Database, client: Client) -> list[str]:
    """Why the service is not ready."""
    reasons: list[str] = []
    if not database.reachable:
        reasons.append("the database does not answer, or is not migrated")
    if not client.is_connected:
        reasons.append("the bus does not answer")
    return reasons


async def probe(database: Database) -> None:
    """Keep asking the database whether it is there."""
    while True:
        metrics.DATABASE_UP.set(await database.ping())
        await asyncio.sleep(rest_s(_PROBE_INTERVAL_S))


async def expire(adjustments: Adjustments) -> None:
    """Keep taking expired promotional credit back."""
    while True:
        try:
            expired = await expire_credits(adjustments, new_id, time.time_ns())
            if expired:
                log.info("promotional credit expired", transfers=expired)
        except Unavailable as error:
            log.warning("promotional credit not expired", reason=error.reason)
        await asyncio.sleep(_EXPIRE_INTERVAL_S)


@contextlib.asynccontextmanager
async def consuming(all_of_them: list[Consumer], stop: Stop) -> AsyncIterator[None]:
    """Consume in the background; on leaving, finish what is in hand."""
    tasks = [asyncio.create_task(consumer.run()) for consumer in all_of_them]
    for task in tasks:
        task.add_done_callback(lambda task: _end_with(task, stop))
    try:
        yield
    finally:
        for consumer in all_of_them:
            consumer.stop()
        _, late = await asyncio.wait(tasks, timeout=_STOP_GRACE_S)
        await end(late)


@contextlib.asynccontextmanager
async def background(work: Coroutine[Any, Any, None], stop: Stop) -> AsyncIterator[None]:
    """Run `work` until leaving."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda task: _end_with(task, stop))
    try:
        yield
    finally:
        await end([task])


def _end_with(task: asyncio.Task[None], stop: Stop) -> None:
    """A part that ends by a bug takes the process with it: whoever supervises it starts it anew."""
    if not task.cancelled() and (error := task.exception()) is not None and not stop.done():
        stop.set_exception(error)


def _stop_now(stop: Stop) -> None:
    if not stop.done():
        stop.set_result(None)


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop: Stop = loop.create_future()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop_now, stop)
    await serve(settings, stop)


def main() -> None:
    """Entry point."""
    settings = Settings()  # pyright: ignore[reportCallIssue]
    configure_logging("billing", settings.log_level)
    uvloop.run(run(settings))
