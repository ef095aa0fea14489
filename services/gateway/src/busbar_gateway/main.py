"""The composition root of the gateway: the only reader of settings."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from importlib.metadata import version
from time import monotonic
from typing import Any

import structlog
import uuid_utils
import uvloop
from busbar_errors import BusbarError
from busbar_messaging.background import end, rest_s
from busbar_messaging.connection import close, connect
from busbar_messaging.topology import usage_subject
from busbar_observability.logs import configure_logging
from busbar_observability.ops import ops_application, serve_http
from busbar_observability.tracing import configure_tracing, flush_tracing
from nats.aio.client import Client
from opentelemetry.trace import Tracer

from busbar_gateway.adapters.bus import WorkBus
from busbar_gateway.adapters.bus_clock import BusClock
from busbar_gateway.adapters.commit_table import CommitTable
from busbar_gateway.adapters.credit_leases import CreditDesk
from busbar_gateway.adapters.grpc.catalogue import Catalogue
from busbar_gateway.adapters.grpc.edge import serve_grpc
from busbar_gateway.adapters.grpc.goodbye import say_goodbye
from busbar_gateway.adapters.grpc.inference import Inference
from busbar_gateway.adapters.http.app import create_app, server_options
from busbar_gateway.adapters.http.idempotency import Idempotency, MayAsk
from busbar_gateway.adapters.http.limits import HttpLimits
from busbar_gateway.adapters.http.services import Services
from busbar_gateway.adapters.idempotency_store import IdempotencyStore
from busbar_gateway.adapters.key_ring import KeyRing
from busbar_gateway.adapters.metrics import Metrics
from busbar_gateway.adapters.model_response import is_response
from busbar_gateway.adapters.open_files import OPERATIONS_CONNECTIONS_MAX, make_room
from busbar_gateway.adapters.policy_table import PolicyTable
from busbar_gateway.adapters.presence import Gateways, Heartbeat
from busbar_gateway.adapters.price_table import PriceTable
from busbar_gateway.adapters.route_table import RouteTable
from busbar_gateway.adapters.usage_log import UsageLog
from busbar_gateway.domain.routes import Caller
from busbar_gateway.settings import GatewaySettings
from busbar_gateway.usecases.admitting import Admissions
from busbar_gateway.usecases.crediting import Credit
from busbar_gateway.usecases.dispatcher import Dispatcher
from busbar_gateway.usecases.limiting import Limiting
from busbar_gateway.usecases.request_trace import RequestTracing
from busbar_gateway.usecases.served import Collaborators
from busbar_gateway.usecases.serving import Serving
from busbar_gateway.usecases.watchdog import TICK_S, Watchdog

log = structlog.get_logger()

_COLLECT_EVERY_OBJECTS = 10_000
_READ_POLL_S = 0.01


@dataclass(slots=True)
class Gateway:
    """The parts of a running gateway."""

    client: Client
    clock: BusClock
    keys: KeyRing
    policies: PolicyTable
    routes: RouteTable
    gateways: Gateways
    bus: WorkBus
    usage: UsageLog
    admissions: Admissions
    prices: PriceTable
    desk: CreditDesk
    credit: Credit
    dispatcher: Dispatcher
    metrics: Metrics
    heartbeat: Heartbeat
    answers: IdempotencyStore
    idempotency: Idempotency
    collaborators: Collaborators
    tracer: Tracer
    listening: bool = False
    """Whether customers can connect: the ops listener opens before the others."""
    stopping: bool = False

    def unready_for_customers(self) -> list[str]:
        """Why a balancer should send nobody here; empty when it should."""
        reasons = list[str]() if self.listening else ["it does not listen to customers yet"]
        return reasons + self.readiness()

    def readiness(self) -> list[str]:
        """Why the gateway is not ready; empty when it is."""
        reasons = ["the gateway stops"] if self.stopping else list[str]()
        if not self.client.is_connected:
            reasons.append("the bus is away")
        if not self.clock.measured:
            reasons.append("the clock was not compared with the bus's yet")
        return reasons + self.unread()

    def unread(self) -> list[str]:
        """What the bus knows and the gateway does not yet."""
        reasons: list[str] = []
        if not self.keys.read_once:
            reasons.append("the keys were not read yet")
        if not self.policies.read_once:
            reasons.append("the tenants' policies were not read yet")
        if not self.prices.read_once:
            reasons.append("the prices were not read yet")
        if not self.routes.read_once:
            reasons.append("the routes were not read yet")
        return reasons


def build(settings: GatewaySettings, client: Client, metrics: Metrics) -> Gateway:
    """Put the parts together. Raises OSError when the state directory cannot be used."""
    gateway_id, region = settings.gateway_id, settings.region
    tracer = configure_tracing("gateway", settings.otlp_endpoint)
    routes, policies, prices = RouteTable(), PolicyTable(), PriceTable()
    limiting = Limiting(policies.current)
    clock = BusClock(observe=metrics.clock_ahead)
    answers = IdempotencyStore(client, clock.unix_s)
    gateways = Gateways(region, gateway_id, limiting, clock)
    bus = WorkBus(client, gateway_id)
    admissions = _admissions(settings, routes, gateways, policies)
    dispatcher = _dispatcher(settings, bus, routes, admissions, metrics, unix_ns=clock.unix_ns)
    usage = _usage_log(settings, client, metrics)
    tracing = _request_tracing(settings, tracer)
    run_id = uuid_utils.uuid7().hex
    desk = CreditDesk(client, gateway_id=gateway_id, run_id=run_id)
    credit = Credit(desk, lambda: prices.current, clock.unix_ns)
    heartbeat = Heartbeat(
        client,
        region=region,
        gateway_id=gateway_id,
        run_id=run_id,
        admissions=admissions,
        limiting=limiting,
        loads=metrics.loads,
        clock=clock,
        dispatcher=dispatcher,
    )
    return Gateway(
        client=client,
        clock=clock,
        keys=KeyRing(settings.key_hmac_secret.get_secret_value().encode(), clock.unix_s),
        policies=policies,
        routes=routes,
        gateways=gateways,
        bus=bus,
        usage=usage,
        admissions=admissions,
        prices=prices,
        desk=desk,
        credit=credit,
        dispatcher=dispatcher,
        metrics=metrics,
        heartbeat=heartbeat,
        answers=answers,
        idempotency=Idempotency(
            answers,
            gateway_id=gateway_id,
            run_id=run_id,
            is_gone=gateways.is_gone,
            may_ask=_may_ask(routes, limiting),
            unix_s=clock.unix_s,
        ),
        collaborators=Collaborators(
            limiting, admissions, dispatcher, usage, credit, tracing, metrics, unix_ns=clock.unix_ns
        ),
        tracer=tracer,
    )


def _may_ask(routes: RouteTable, limiting: Limiting) -> MayAsk:
    """As a request itself: first whether there is such a model, then whether its tenant is
    served."""

    def check(caller: Caller, model: str) -> None:
        routes.check_open(caller, model)
        limiting.check_served(caller.tenant_id)

    return check


def _dispatcher(
    settings: GatewaySettings,
    bus: WorkBus,
    routes: RouteTable,
    admissions: Admissions,
    metrics: Metrics,
    *,
    unix_ns: Callable[[], int],
) -> Dispatcher:
    return Dispatcher(
        bus,
        reply_subject=bus.reply_subject,
        region=settings.region,
        nearest=settings.near_regions,
        shares=admissions.shares,
        current_route=routes.current,
        redispatched=metrics.redispatched,
        readable=is_response,
        unix_ns=unix_ns,
    )


def _admissions(
    settings: GatewaySettings, routes: RouteTable, gateways: Gateways, policies: PolicyTable
) -> Admissions:
    return Admissions(
        queue_max=settings.queue_max,
        unready_grace_s=settings.unready_grace.total_seconds(),
        remembered_ready_s=settings.remembered_ready.total_seconds(),
        current_route=routes.current,
        region=settings.region,
        others=gateways.others,
        policy=policies.current,
    )


def _request_tracing(settings: GatewaySettings, tracer: Tracer) -> RequestTracing:
    slow_after_s = settings.trace_slow_after.total_seconds()
    return RequestTracing(tracer, ratio=settings.trace_sample_ratio, slow_after_s=slow_after_s)


def _usage_log(settings: GatewaySettings, client: Client, metrics: Metrics) -> UsageLog:
    gateway_id = settings.gateway_id
    return UsageLog(
        client,
        CommitTable(settings.state_dir / f"commits-{gateway_id}"),
        subject=usage_subject(settings.region, gateway_id),
        gateway_id=gateway_id,
        give_up_after=settings.usage_give_up_after,
        committed=metrics.committed,
    )


@contextlib.asynccontextmanager
async def running(gateway: Gateway, region: str) -> AsyncIterator[None]:
    """Keep the background work of a gateway going while the context is open."""
    routes, admissions = gateway.routes, gateway.admissions
    dispatcher = gateway.dispatcher
    watchdog = Watchdog(gateway.bus, dispatcher.pending, region, not_taken=dispatcher.withdraw)

    def routes_changed() -> None:
        admissions.capacity_changed()
        dispatcher.routes_changed()

    routes.on_change(routes_changed)
    admissions.on_asked(gateway.heartbeat.hurry)

    sharing = gateway.gateways.alive()

    def every_tick(now: float) -> None:
        nonlocal sharing
        if (alive := gateway.gateways.alive()) != sharing:  # one may just have fallen silent
            sharing = alive
            admissions.capacity_changed()
        admissions.expire(now)
        gateway.dispatcher.expire(now)
        gateway.usage.expire(now)
        for deployment in admissions.deployments():
            lane = admissions.lane(deployment)
            if lane is not None:
                gateway.metrics.depth(deployment, lane)

    await gateway.bus.start(gateway.dispatcher.on_frame)
    await gateway.desk.hear_recalls(gateway.credit.recall)
    work: list[Coroutine[Any, Any, None]] = [
        gateway.keys.follow(gateway.client),
        gateway.policies.follow(gateway.client),
        gateway.prices.follow(gateway.client),
        gateway.answers.follow(),
        gateway.credit.run(),
        routes.follow(gateway.client),
        gateway.gateways.follow(gateway.client),
        gateway.usage.run(),
        gateway.heartbeat.run(),
        watchdog.run(),
        _keep_time(every_tick),
    ]
    tasks = [asyncio.create_task(job) for job in work]
    for task in tasks:
        task.add_done_callback(_died)
    try:
        yield
    finally:
        await end(tasks)
        gateway.usage.close()
        await gateway.heartbeat.withdraw()


async def _keep_time(every_tick: Callable[[float], None]) -> None:
    """One timer for everything that expires; arming one for each request is dearer."""
    while True:
        await asyncio.sleep(rest_s(TICK_S))
        try:
            every_tick(monotonic())
        except Exception:
            log.exception("tick failed")


def _died(task: asyncio.Task[None]) -> None:
    """Background work never ends by itself: without it the gateway must not go on."""
    if not task.cancelled():
        log.critical("background work ended", exc_info=task.exception())
        signal.raise_signal(signal.SIGTERM)


async def serve(settings: GatewaySettings) -> None:
    """Run the gateway until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    client = await connect(settings, f"gateway-{settings.gateway_id}")
    gateway = build(settings, client, Metrics())
    _spare_the_collector()
    try:
        async with running(gateway, settings.region):
            await serve_edges(settings, gateway, stop)
            await gateway.idempotency.drain(settings.stop_grace)
            await gateway.usage.drain(settings.stop_grace)
            await gateway.credit.close()
    finally:
        await close(client)
        flush_tracing(gateway.tracer)


def _spare_the_collector() -> None:
    """What was made at start stays: looking through it again and again only costs pauses."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY_OBJECTS, 20, 20)


async def serve_edges(settings: GatewaySettings, gateway: Gateway, stop: asyncio.Event) -> None:
    """Listen until `stop`, then leave: customers are told, and what is in hand is finished."""
    serving = Serving(gateway.collaborators)
    inference = Inference(
        serving,
        gateway.keys,
        gateway.routes,
        default_timeout_s=settings.request_timeout.total_seconds(),
        timeout_max_s=settings.request_timeout_max.total_seconds(),
    )
    catalogue = Catalogue(
        inference.authenticate, gateway.routes.find, gateway.readiness, version("busbar-gateway")
    )
    connections_max = make_room()
    limits = HttpLimits(max_connections=connections_max)
    services = Services(
        serving,
        gateway.keys,
        gateway.routes,
        gateway.idempotency,
        limits,
        gateway.readiness,
        gateway.collaborators.limiting.standings,
    )
    async with contextlib.AsyncExitStack() as stack:
        ops = ops_application(gateway.unready_for_customers)
        await stack.enter_async_context(
            serve_http(
                ops,
                settings.http_host,
                settings.ops_port,
                connections_max=OPERATIONS_CONNECTIONS_MAX,
            )
        )
        while gateway.unread() and not stop.is_set():  # or good keys would be refused as unknown
            await asyncio.sleep(_READ_POLL_S)
        http_port = await stack.enter_async_context(
            serve_http(
                create_app(services),
                settings.http_host,
                settings.http_port,
                **server_options(limits, lambda: gateway.stopping),
                timeout_graceful_shutdown=settings.stop_grace.total_seconds(),
            )
        )
        grpc_port = await stack.enter_async_context(
            serve_grpc(
                inference,
                catalogue,
                address=f"{settings.http_host}:{settings.grpc_port}",
                readiness=gateway.readiness,
                grace=settings.stop_grace,
                connections_max=connections_max,
                bounded=settings.grpc_bounded,
            )
        )
        gateway.listening = True
        log.info("gateway serves", http_port=http_port, grpc_port=grpc_port)
        await stop.wait()
        gateway.stopping = True
        notice_s = settings.stop_notice.total_seconds()
        log.info("gateway stops", notice_s=notice_s)
        await say_goodbye(grpc_port, notice_s)
        gateway.collaborators.stopping = True


def main() -> int:
    """Entry point; returns the exit status."""
    settings = GatewaySettings()  # pyright: ignore[reportCallIssue]
    configure_logging("gateway", settings.log_level)
    try:
        uvloop.run(serve(settings))
    except BusbarError as error:
        log.critical("gateway cannot run", reason=error.reason)
        return 1
    except BlockingIOError:
        log.critical(
            "gateway cannot run",
            reason=f"another process is gateway {settings.gateway_id} in {settings.state_dir}",
        )
        return 1
    return 0
