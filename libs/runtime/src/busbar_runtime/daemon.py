"""The process behind `./just up`: `python -m busbar_runtime.daemon HOME CACHE`.

Its settings come in as JSON on the environment variable BUSBAR_LAUNCH. It says what happens on
standard output, listens on the control socket, and stops everything on SIGTERM, on the request
`shutdown`, or when standard input ends while it was told to follow it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from busbar_runtime import control, endpoints
from busbar_runtime.composition import platform_nodes
from busbar_runtime.descendants import kill_strays
from busbar_runtime.fleet import Fleet
from busbar_runtime.home import Home, Secrets
from busbar_runtime.nats import NatsAddress
from busbar_runtime.ports import PortPool
from busbar_runtime.postgres import PostgresAddress
from busbar_runtime.process import StartFailedError
from busbar_runtime.scratch_folders import remove_stale_scratch
from busbar_runtime.services import SERVICES, Ports, Wiring
from busbar_runtime.shared_memory import remove_stale_segments
from busbar_runtime.site_buses import identities_of
from busbar_runtime.spec import Environment, ProcessSpec, with_predecessors
from busbar_runtime.supervisor import Supervisor
from busbar_runtime.warden import run_guarded

START_FAILED, ALREADY_RUNNING = 1, 3
SETTINGS_VARIABLE = "BUSBAR_LAUNCH"


@dataclass(frozen=True)
class LaunchSettings:
    """What a caller may decide about a platform."""

    parts: Sequence[str] = ()  # with all that these come after; none named means everything
    ports: Mapping[str, int] = field(default_factory=dict[str, int])
    environments: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, dict[str, str]])
    follow_stdin: bool = False
    sites: int = 0
    """How many sites with a NATS and a node each; 0: one node on the one NATS there is."""
    hub_servers: int = 1
    """With sites: how many NATS servers each region has, 1 or 3."""
    links: Mapping[str, int] = field(default_factory=dict[str, int])
    """For a site: the loopback port that its NATS takes for its region's. For tests of links."""

    def as_json(self) -> str:
        return json.dumps(asdict(self))


class Daemon:
    """One running platform and the requests it answers."""

    def __init__(self, home: Home, settings: LaunchSettings) -> None:
        self._home = home
        self._pool = PortPool()
        self._wiring = wire(home, self._pool, settings)
        nodes = platform_nodes(self._wiring, settings.environments, settings.links)
        if settings.parts:
            nodes = with_predecessors(nodes, settings.parts)
        self._supervisor = Supervisor(
            nodes, logs=home.logs, announce=announce, changed=self._write_pids, sweep=kill_strays
        )
        self._names = {node.name for node in nodes}
        self._stop = asyncio.Event()
        self._phase = "starting"
        self._held: dict[str, int | None] = {}
        """What is run by hand instead of by us, with the process id once it is known."""

    async def run(self, *, follow_stdin: bool) -> int:
        """Start everything, stay until told to stop, stop everything."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        if follow_stdin:
            loop.add_reader(sys.stdin.fileno(), self._on_stdin)
        endpoints.update(self._home, self._addresses(), replace=True)
        server = await control.serve(self._home.run, self._answer)
        starting = asyncio.create_task(self._supervisor.start())
        stopping = asyncio.create_task(self._stop.wait())
        failed = False
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                self._phase = "ready"
                announce("everything is ready")
                await stopping
        except (StartFailedError, RuntimeError, OSError) as problem:
            failed = True
            announce(f"start failed: {problem}")
        self._phase = "stopping"
        starting.cancel()
        with suppress(asyncio.CancelledError, StartFailedError, RuntimeError, OSError):
            await starting
        await self._supervisor.stop()
        server.close()
        self._pool.close()
        return START_FAILED if failed else 0

    def _on_stdin(self) -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            self._stop.set()

    async def _answer(self, request: control.Request, gone: asyncio.Event) -> control.Answer:
        match request["command"]:
            case "status":
                return self._status()
            case "shutdown":
                self._stop.set()
                return {}
            case "stop":
                await self._process(request).stop()
            case "start":
                await self._process(request).start()
            case "restart":
                await self._process(request).stop()
                await self._process(request).start()
            case "wait-ready":
                await self._process(request).wait_ready()
            case "kill":
                await self._process(request).send(request["signal"])
            case "take-over":
                return await self._take_over(request, gone)
            case "run-by-hand":
                self._held[request["name"]] = int(request["pid"])
                return {}
            case other:
                raise ValueError(f"unknown command {other!r}")
        return {"pid": self._process(request).pid}

    def _process(self, request: control.Request) -> Any:
        name = request["name"]
        if name not in self._supervisor.processes:
            raise ValueError(
                f"no process is called {name!r}; there are: {', '.join(self._supervisor.processes)}"
            )
        return self._supervisor.processes[name]

    def _status(self) -> control.Answer:
        return {
            "phase": self._phase,
            "warden": os.getppid(),
            "processes": {
                name: {
                    "state": "by hand" if name in self._held else str(process.state),
                    "pid": self._held.get(name, process.pid),
                    "restarts": process.restarts,
                }
                for name, process in self._supervisor.processes.items()
            },
        }

    async def _take_over(self, request: control.Request, gone: asyncio.Event) -> control.Answer:
        """Stop our process and say how to run it; ours comes back when the requester is gone."""
        process = self._process(request)
        name = process.spec.name
        if name in self._held:
            raise ValueError(f"{name} has been taken over already")
        self._held[name] = None
        await process.stop()
        announce(f"{name} was taken over")
        self._watcher = asyncio.create_task(self._give_back(name, gone))
        spec: ProcessSpec = process.spec
        environment: Environment = spec.env
        said = environment() if callable(environment) else environment
        return {"argv": list(spec.argv), "env": dict(said), "cwd": str(spec.cwd)}

    async def _give_back(self, name: str, gone: asyncio.Event) -> None:
        await gone.wait()
        del self._held[name]
        if self._stop.is_set():
            return
        announce(f"{name} was given back")
        with suppress(StartFailedError):
            await self._supervisor.processes[name].start()

    def _addresses(self) -> dict[str, Any]:
        ports, secrets = self._wiring.ports, self._wiring.secrets
        found: dict[str, Any] = {
            "launcher": os.getpid(),
            "keys": {"operator": secrets.operator_token},
            "signing_key": str(self._home.signing_key_file),
            "pids": {},
        }
        if "nats" in self._names:
            found["nats"] = self._wiring.nats.url
            found["nats_monitor"] = self._wiring.nats.monitor_url
            found["nats_credentials"] = dict(self._wiring.bus_secrets)
            found["regions"], found["sites"] = self._wiring.fleet.regions, self._sites()
        if "postgres" in self._names:
            found["postgres"] = self._wiring.postgres.admin_dsn
        services = [*SERVICES, *self._wiring.fleet.agents]
        if running := [service for service in services if service in self._names]:
            found["ops"] = {service: ports.url(f"{service}-ops") for service in running}
            found["otlp"] = self._wiring.otlp_url
            if self._wiring.otlp_grpc:
                found["otlp_grpc"] = self._wiring.otlp_grpc
            found["admin"] = {
                name: ports.url(name)
                for name in ("billing", "scheduler", "telemetry")
                if name in running
            }
        if "gateway" in self._names:
            found["http"] = ports.url("http")
            found["grpc"] = ports.url("grpc").removeprefix("http://")
        if "billing" in self._names:
            found["account"] = ports.url("account")
        if "telemetry" in self._names:
            found["console"] = ports.url("telemetry")
        return found

    def _sites(self) -> dict[str, Any]:
        """Each site's node and its process, and its NATS and how that reaches its region's."""
        ports, fleet = self._wiring.ports, self._wiring.fleet
        leaves = {node: leaf for leaf, node in fleet.leaves.items()}
        return {
            f"{node.region}/{node.site}": {
                "node": str(node),
                "agent": agent,
                "nats": ports.url(leaves.get(node, "nats"), "nats"),
                **({"hub": ports.url(f"nats-leaf-{node.region}", "nats")} if leaves else {}),
            }
            for agent, node in fleet.agents.items()
        }

    def _write_pids(self) -> None:
        endpoints.update(self._home, {"pids": self._supervisor.pids()})


def wire(home: Home, pool: PortPool, settings: LaunchSettings) -> Wiring:
    """Give each part of a platform its ports, secrets and neighbours."""
    secrets = Secrets.of(home)
    fleet = Fleet.of(settings.sites, settings.hub_servers)
    ports = Ports.take(pool, settings.ports, fleet)
    return Wiring(
        home,
        secrets,
        ports,
        NatsAddress(ports["nats"], ports["nats-monitor"]),
        PostgresAddress(ports["postgres"], secrets.postgres_admin, secrets.postgres_billing),
        fleet,
        identities_of(home, fleet) if fleet.leaf_nodes else None,
    )


def announce(line: str) -> None:
    """Say it on standard output; where that is a file on a full disk, with the next line or not."""
    with suppress(OSError):
        print(line, flush=True)


def main() -> int:
    home = Home.of(Path(sys.argv[1]), Path(sys.argv[2]))
    settings = LaunchSettings(**json.loads(os.environ.pop(SETTINGS_VARIABLE, "{}")))
    home.make()
    if (lock := home.hold()) is None:
        announce(f"a platform is running in {home.root} already")
        return ALREADY_RUNNING

    def work() -> int:
        try:
            return asyncio.run(_run(home, settings))
        except (ValueError, RuntimeError, OSError) as problem:
            announce(f"start failed: {problem}")
            return START_FAILED

    def clean() -> None:
        endpoints.remove(home)
        remove_stale_segments()
        remove_stale_scratch()

    code = run_guarded(work, clean)
    os.close(lock)
    return code


async def _run(home: Home, settings: LaunchSettings) -> int:
    return await Daemon(home, settings).run(follow_stdin=settings.follow_stdin)


if __name__ == "__main__":
    sys.exit(main())
