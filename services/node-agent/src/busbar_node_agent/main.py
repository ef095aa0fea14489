"""Composition root: read the settings, build the parts, run until told to stop."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import structlog
import uvloop
from busbar_contracts.node.v1 import events_pb2, status_pb2
from busbar_errors import BusbarError
from busbar_messaging.background import end
from busbar_messaging.bundles.store import BundleStore
from busbar_messaging.connection import close, connect
from busbar_messaging.hot_connection import HotConnection
from busbar_messaging.topology import NODES, work_consumer
from busbar_observability.logs import configure_logging
from busbar_observability.open_files import make_room
from busbar_observability.ops import ops_application, serve_http
from busbar_observability.tracing import configure_tracing, flush_tracing
from nats.aio.client import Client
from opentelemetry.trace import Tracer
from prometheus_client import REGISTRY

from busbar_node_agent.adapters.batches import merging
from busbar_node_agent.adapters.bundle_cache import BundleCache
from busbar_node_agent.adapters.bus import Events, follow_placement, putter, take_cancels
from busbar_node_agent.adapters.cache_disk import CacheDisk
from busbar_node_agent.adapters.energy import Gpus, MeasuredEnergy, NotMeasured, find_gpus
from busbar_node_agent.adapters.journal import Journal
from busbar_node_agent.adapters.lease_entry import LeaseEntry
from busbar_node_agent.adapters.measured import MeasuredPublisher
from busbar_node_agent.adapters.metrics import AgentCollector
from busbar_node_agent.adapters.outputs import token_counter
from busbar_node_agent.adapters.puller import WorkPuller
from busbar_node_agent.adapters.repository import ModelRepository
from busbar_node_agent.adapters.spans import Spans
from busbar_node_agent.adapters.state_lock import StateLock
from busbar_node_agent.adapters.triton_process import TritonAddress, TritonCommand
from busbar_node_agent.domain.bus_time import BusTime
from busbar_node_agent.domain.starting import Start
from busbar_node_agent.settings import Settings
from busbar_node_agent.usecases.lane import Lane
from busbar_node_agent.usecases.reconcile import Reconciler
from busbar_node_agent.usecases.replica import Tools
from busbar_node_agent.usecases.report import Reporter
from busbar_node_agent.usecases.supervise import TritonSupervisor
from busbar_node_agent.usecases.tenure import Tenure
from busbar_node_agent.usecases.work import WorkInHand

log = structlog.get_logger()

_KIB, _MIB = 1024, 1024 * 1024
_FLUSH_TIMEOUT_S = 2.0
_LOCK_EVERY_S = 0.5
_LOCKED = "another agent uses the same state directory"
_NO_COLLECTOR = "http://127.0.0.1:9"  # the discard port: Triton wants an address in any case


@dataclass(slots=True)
class Agent:
    """The parts of a running agent."""

    client: Client
    tenure: Tenure
    supervisor: TritonSupervisor
    work: WorkInHand
    reconciler: Reconciler
    reporter: Reporter
    measured: MeasuredPublisher
    energy: MeasuredEnergy | NotMeasured
    settings: Settings

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """What runs until the agent stops."""
        reading = [self.energy.read_for_ever()] if isinstance(self.energy, MeasuredEnergy) else []
        return [
            self.tenure.lost(),
            self.supervisor.supervise(),
            self.reconciler.reconcile(),
            self.reporter.lease(),
            self.reporter.report(),
            self.work.show_signs_of_life(),
            self.measured.keep_room(),
            self.measured.publish_for_ever(),
            follow_placement(
                self.client, self.settings.node_id, self.settings.hub_domain, self.reconciler
            ),
            *reading,
        ]

    def unready(self) -> list[str]:
        """Why the agent is not ready."""
        reasons = {
            "the bus is not connected": not self.client.is_connected,
            "the lease is not stored": not self.reporter.leased,
            "the desired state was not read yet": not self.reconciler.heard,
            f"Triton: {self.supervisor.reason}": bool(self.supervisor.reason),
            "draining": self.reporter.draining,
            self.measured.refusal(): bool(self.measured.refusal()),
        }
        here = [reason for reason, applies in reasons.items() if applies]
        return here + self.reconciler.coming_up()

    async def drain(self) -> None:
        """Take no more work, finish or hand back what is in hand, and leave Triton clean."""
        self.reporter.draining = True
        await self.reporter.write_lease()
        self.reporter.changed()
        await self.reconciler.drain(self.settings.drain_grace.total_seconds())
        if self.settings.triton_command:
            await self.reconciler.abandon()
        else:
            await self.reconciler.unload()
        await self.measured.flush(_FLUSH_TIMEOUT_S)
        await self.reporter.write_status()
        self.reporter.released = True
        await self.reporter.write_lease()


def build(settings: Settings, client: Client, tracer: Tracer, tenure: Tenure) -> Agent:
    """Put the parts together; nothing runs yet."""
    node, run_id, gpus = settings.node_id, tenure.run_id, find_gpus()
    repository = ModelRepository(settings.repository)
    repository.clear()
    domain = settings.hub_domain
    cache, measured = _cache(settings, client), _measured(settings, client, run_id)
    events = Events(client, run_id)
    energy = MeasuredEnergy(gpus) if gpus and gpus.counts_energy() else NotMeasured()
    hot, bus_time = HotConnection(client), BusTime()
    work = WorkInHand(
        node=node.key,
        publish=functools.partial(hot.publish, keep=True),
        energy=energy,
        trace=Spans(tracer, node.key).open,
        on_measured=measured.add,
        on_poison=events.bury,
        unix_s=functools.partial(_unix_s, bus_time),
    )

    def on_lost(reason: str) -> None:
        handed_back = work.engine_lost(
            f"Triton was lost: {reason}", by_loading=reconciler.on_probation
        )
        event = events_pb2.TritonLost(node=node.key, reason=reason, handed_back=handed_back)
        events.publish("triton_lost", event)

    def on_change() -> None:
        reporter.changed()

    pulling = functools.partial(
        WorkPuller, client, hot, domain=domain, bus_time=bus_time, refusal=measured.refusal
    )

    def open_puller(lane: Lane, queue: str) -> WorkPuller:
        return pulling(work_consumer(node.region, lane.deployment, queue), lane, work.take)

    supervisor = TritonSupervisor(_launcher(settings), on_lost, on_change)
    tools = Tools(
        node=node.key,
        supervisor=supervisor,
        work=work,
        fetch=cache.fetch,
        stage=repository.stage,
        unstage=repository.unstage,
        pin=cache.pin,
        open_puller=open_puller,
        token_counter=token_counter,
        merging=merging,
        on_change=on_change,
        on_event=events.publish,
        loading=asyncio.Semaphore(settings.loads_at_once),
        suspects=asyncio.Lock(),
        load_within_s=settings.load_within.total_seconds(),
    )
    reconciler = Reconciler(tools, Start(settings.come_up_within.total_seconds()))
    reporter = Reporter(
        node=node.key,
        run_id=run_id,
        capacity=_capacity(settings, gpus),
        supervisor=supervisor,
        reconciler=reconciler,
        work=work,
        refusal=measured.refusal,
        put_lease=tenure.put,
        put_status=tenure.guarded(putter(client, NODES, node.key, domain)),
    )
    return Agent(client, tenure, supervisor, work, reconciler, reporter, measured, energy, settings)


def _cache(settings: Settings, client: Client) -> BundleCache:
    return BundleCache(
        store=BundleStore(client, settings.hub_domain),
        trusted=settings.trusted,
        disk=CacheDisk(settings.state_dir / "bundles", settings.bundle_cache_mib_max * _MIB),
        bundle_bytes_max=settings.bundle_mib_max * _MIB,
    )


def _measured(settings: Settings, client: Client, run_id: str) -> MeasuredPublisher:
    journal = Journal(settings.state_dir / "measured", run_id, settings.journal_kib * _KIB)
    journal.open()
    return MeasuredPublisher(client.jetstream(timeout=5), settings.node_id, run_id, journal)


def _unix_s(bus_time: BusTime) -> float:
    return bus_time.unix_s(time.monotonic(), otherwise=time.time())


async def run(settings: Settings) -> int:
    """Run the agent until SIGTERM or SIGINT; returns the exit status."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    tracer = configure_tracing("node-agent", settings.otlp_endpoint or None)
    client = await connect(settings, f"node-agent {settings.node_id}")
    node, agent, status = settings.node_id, None, 0
    entry = LeaseEntry(client, node, settings.hub_domain)
    tenure = Tenure(node.key, uuid.uuid4().hex, socket.gethostname(), entry)

    def unready() -> list[str]:
        return agent.unready() if agent else [tenure.reason]

    ops, host, share = ops_application(unready), settings.http_host, make_room(listeners=1)
    with StateLock(settings.state_dir) as lock:
        async with serve_http(ops, host, settings.ops_port, connections_max=share):
            if await _unless(stopping, _named(tenure, lock)):
                agent = build(settings, client, tracer, tenure)
                status = await _serve(agent, stopping)
    await close(client)
    flush_tracing(tracer)
    return status


async def _named(tenure: Tenure, lock: StateLock) -> None:
    """Wait until this process alone is the node: on its disk, and on the bus."""
    while (before := lock.acquire(tenure.run_id)) is None:
        if tenure.reason != _LOCKED:
            tenure.reason = _LOCKED
            log.error("waiting", reason=_LOCKED)
        await asyncio.sleep(_LOCK_EVERY_S)
    await tenure.take(before)


async def _unless(stopping: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Whether the work was done before everything was told to stop."""
    task, stop = asyncio.create_task(work), asyncio.create_task(stopping.wait())
    await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
    done = task.done() and not stopping.is_set()
    if done:
        task.result()
    await end((task, stop))
    return done


async def _serve(agent: Agent, stopping: asyncio.Event) -> int:
    collector = AgentCollector(agent.reporter)
    REGISTRY.register(collector)
    node = agent.settings.node_id
    await take_cancels(agent.client, node, agent.work, agent.reconciler)
    status = await _until(stopping, agent)
    REGISTRY.unregister(collector)
    return status


async def _until(stopping: asyncio.Event, agent: Agent) -> int:
    """Run the agent's loops until told to stop, then drain; 1 when a loop failed."""
    tasks = [asyncio.create_task(loop) for loop in agent.loops()]
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
    broken = [task for task in tasks if task.done() and not task.cancelled()]
    for task in broken:
        log.error("loop failed", error=repr(task.exception()), exc_info=task.exception())
    log.info("stopping")
    await agent.drain()
    await end((stop, *tasks))
    return 1 if broken else 0


def _launcher(settings: Settings) -> TritonCommand | TritonAddress:
    if not settings.triton_command:
        return TritonAddress(settings.triton_grpc_url)
    otlp_url = f"{(settings.otlp_endpoint or _NO_COLLECTOR).rstrip('/')}/v1/traces"
    note = settings.state_dir / "triton.json"
    return TritonCommand(settings.triton_command, settings.repository, otlp_url, note)


def _capacity(settings: Settings, gpus: Gpus | None) -> status_pb2.NodeCapacity:
    """GPU memory where there is a GPU, else what is set, else half of the machine's memory."""
    if settings.memory_mib is not None:
        memory_mib = settings.memory_mib
    elif gpus is not None:
        memory_mib = gpus.memory_mib
    else:
        memory_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MIB // 2
    return status_pb2.NodeCapacity(
        memory_mib=memory_mib,
        slots=settings.slots,
        gpus=gpus.names if gpus else (),
        energy_measured=bool(gpus and gpus.counts_energy()),
    )


def main() -> int:
    """Entry point of `python -m busbar_node_agent`."""
    settings = Settings()  # pyright: ignore[reportCallIssue]
    configure_logging("node-agent", settings.log_level)
    try:
        return uvloop.run(run(settings))
    except BusbarError as error:
        sys.stderr.write(f"{error.reason}\n")
        return 1
