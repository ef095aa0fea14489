"""Composition root: read settings, build, serve, stop in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog
from busbar_errors import Unavailable
from busbar_messaging.background import end, rest_s
from busbar_messaging.bundles.store import BundleStore
from busbar_messaging.connection import close, connect
from busbar_observability.logs import configure_logging
from busbar_observability.open_files import make_room
from busbar_observability.ops import ops_application, serve_http
from nats.aio.client import Client

from busbar_scheduler.adapters.announcements import Announcements
from busbar_scheduler.adapters.board import Board
from busbar_scheduler.adapters.buckets import Buckets
from busbar_scheduler.adapters.declarations import Declarations
from busbar_scheduler.adapters.demand_memory import DemandMemory
from busbar_scheduler.adapters.fleet_view import FleetView
from busbar_scheduler.adapters.http.app import AdminApi
from busbar_scheduler.adapters.http.bundles import BundlesApi
from busbar_scheduler.adapters.leadership import Leadership
from busbar_scheduler.adapters.model_stock import ModelStock
from busbar_scheduler.adapters.pacemaker import Pacemaker
from busbar_scheduler.adapters.work_queues import WorkQueues
from busbar_scheduler.settings import Settings
from busbar_scheduler.usecases.cycle import Cycle, Planner
from busbar_scheduler.usecases.keep_bundles import Sweeper
from busbar_scheduler.usecases.quarantine import Warden
from busbar_scheduler.usecases.rolling_out import Rollouts

log = structlog.get_logger()

_READ_POLL_S = 0.1
_WATCH_EVERY_S = 1.0
_SWEEP_EVERY_S = 600.0


class Scheduler:
    """One scheduler: leads, or stands by until it has to."""

    def __init__(self, settings: Settings, client: Client) -> None:
        buckets = Buckets(client)
        self.view = FleetView(client)
        self.leadership = Leadership(
            buckets, settings.scheduler_id, lambda: self.view.published().highest_token
        )
        self.announcements = Announcements(client, settings.scheduler_id)
        cycle = Cycle(
            fleet=self.view,
            leadership=self.leadership,
            board=Board(buckets, self.view, self.leadership),
            queues=WorkQueues(client),
            announcements=self.announcements,
            planner=Planner(time.monotonic),
        )
        self.pacemaker = Pacemaker(cycle, self.view)
        self.demand_memory = DemandMemory(
            client, buckets, self.view.autoscaler, lambda: self.leadership.token() is not None
        )
        declarations = Declarations(buckets, self.view)
        self._warden = Warden(self.view, declarations, self.leadership)
        store = BundleStore(client)
        self._sweeper = Sweeper(
            stock=ModelStock(client),
            store=store,
            declarations=declarations,
            in_use=self.view,
            ages=settings.sweep_ages,
        )
        self._rollouts = Rollouts(self.view, declarations, self.leadership, self.announcements)
        api = AdminApi(
            view=self.view,
            leadership=self.leadership,
            declarations=declarations,
            bundles=BundlesApi(
                declarations,
                store,
                settings.trusted,
                settings.bundle_max_bytes,
                self.view,
                self._sweeper,
            ),
            rollouts=self._rollouts,
            announcements=self.announcements,
        )
        self.application = api.application(settings.operator_token.get_secret_value())

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow, campaign and schedule for as long as the context lasts."""
        async with self.view.following(), asyncio.TaskGroup() as group:
            work = [
                group.create_task(self._campaign(), name="campaign"),
                group.create_task(self.pacemaker.run(), name="cycles"),
                group.create_task(self.demand_memory.follow(), name="follow:demand history"),
                group.create_task(self.demand_memory.run(), name="note demand"),
                group.create_task(self._sweep(), name="sweep"),
                group.create_task(self._every_second(self._warden.look), name="warden"),
                group.create_task(self._every_second(self._rollouts.look), name="rollouts"),
            ]
            try:
                yield
            finally:
                await end(work)
                await self.leadership.resign()

    async def _every_second(self, look: Callable[[float, int], Awaitable[None]]) -> None:
        """Look for broken nodes, or at versions on trial, for ever."""
        while True:
            await asyncio.sleep(rest_s(_WATCH_EVERY_S))
            try:
                await look(time.monotonic(), time.time_ns() // 1_000_000)
            except Unavailable as error:
                log.warning("round not finished", reason=error.reason)
            except Exception:  # a bug in one round must not end the watch
                log.exception("round not finished")

    async def _sweep(self) -> None:
        """Sweep the model store while leading, for ever."""
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            if self.leadership.token() is None:
                continue
            try:
                await self._sweeper.sweep()
            except Unavailable as error:
                log.warning("model store not swept", reason=error.reason)
            except Exception:  # a bug in one sweep must not end the others
                log.exception("model store not swept")

    async def _campaign(self) -> None:
        """Stand for election once the picture has been read, so that tokens only grow."""
        while self.view.missing:
            await asyncio.sleep(_READ_POLL_S)

        async def elected(fencing_token: int) -> None:
            self.view.changed.set()
            await self.announcements.leader_elected(fencing_token)

        await self.leadership.campaign(elected)


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    client = await connect(settings, "busbar-scheduler")
    scheduler = Scheduler(settings, client)
    share = make_room(listeners=2)
    try:
        async with (
            scheduler.running(),
            serve_http(
                scheduler.application, settings.http_host, settings.http_port, connections_max=share
            ),
            serve_http(
                ops_application(lambda: scheduler.view.missing),
                settings.http_host,
                settings.ops_port,
                connections_max=share,
            ),
        ):
            log.info("scheduler started", scheduler_id=settings.scheduler_id)
            await stop.wait()
            log.info("scheduler stopping")
    finally:
        await close(client)


def main() -> None:
    """Entry point."""
    settings = Settings()  # pyright: ignore[reportCallIssue]
    configure_logging("scheduler", settings.log_level)
    asyncio.run(run(settings))
