"""Keep one Triton running: notice that it crashed or hangs, and start it again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

import structlog
from busbar_contracts.node.v1 import status_pb2
from busbar_messaging.background import to_its_end

from busbar_node_agent.domain.backoff import backoff_s
from busbar_node_agent.domain.health import STILL_MAX_S, ProbeHistory, Standstill
from busbar_node_agent.usecases.lane import Inference, TritonRefused

log = structlog.get_logger()

PROBE_INTERVAL_S = 1.0
PROBE_TIMEOUT_S = 0.8
STARTUP_TIMEOUT_S = 90.0
STABLE_AFTER_S = 60.0
STOP_GRACE = timedelta(seconds=4)
_STARTUP_POLL_S = 0.1
_RESTART_FIRST_S, _RESTART_CAP_S = 0.2, 15.0

STARTING = status_pb2.TRITON_STATE_STARTING
READY = status_pb2.TRITON_STATE_READY
HUNG = status_pb2.TRITON_STATE_HUNG
DOWN = status_pb2.TRITON_STATE_DOWN


class Control(Inference, Protocol):
    """Triton's gRPC interface, as adapters.triton_rpc.TritonRpc has it."""

    async def live(self, timeout_s: float) -> bool: ...
    async def model_ready(self, model: str, timeout_s: float) -> bool: ...
    async def load(self, model: str, timeout_s: float) -> None: ...
    async def unload(self, model: str, timeout_s: float) -> None: ...
    async def states(self, timeout_s: float) -> dict[str, str]: ...
    async def metadata(self, model: str, timeout_s: float) -> bytes: ...
    async def config(self, model: str, timeout_s: float) -> bytes: ...


class Run(Protocol):
    """One run of a Triton. `attached`: somebody else runs it, we can neither stop nor start it."""

    @property
    def rpc(self) -> Control: ...
    @property
    def attached(self) -> bool: ...
    @property
    def pid(self) -> int: ...
    def stopped(self) -> list[int]: ...
    def kill(self, model: str) -> list[int]: ...
    async def complaint(self, model: str, since_s: float) -> str: ...
    async def settle(self) -> None: ...
    async def exited(self) -> str: ...
    async def end(self, grace: timedelta = ...) -> None: ...


class Launcher(Protocol):
    """Starts Triton, or connects to it."""

    async def start(self) -> Run: ...


@dataclass(slots=True, eq=False)
class Session:
    """A live run of Triton, until `lost`."""

    run: Run
    lost: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def rpc(self) -> Control:
        """How to call it."""
        return self.run.rpc


class _Lost(Exception):
    def __init__(self, state: status_pb2.TritonState.ValueType, reason: str) -> None:
        super().__init__(reason)
        self.state, self.reason = state, reason


@dataclass(slots=True)
class TritonSupervisor:
    """The state of the node's Triton, and the loop that keeps it READY."""

    launcher: Launcher
    on_lost: Callable[[str], None]
    on_change: Callable[[], None]
    state: status_pb2.TritonState.ValueType = STARTING
    reason: str = "not started yet"
    restarts: int = 0
    _session: Session | None = None
    _live: asyncio.Event = field(default_factory=asyncio.Event)
    _suspicion: asyncio.Event = field(default_factory=asyncio.Event)
    _suspected: str = ""

    @property
    def pid(self) -> int:
        """Process id of the Triton we started; 0 for none."""
        return self._session.run.pid if self._session else 0

    async def session(self) -> Session:
        """The live run, once there is one."""
        while self._session is None:
            await self._live.wait()
        return self._session

    def accuse(self, session: Session, reason: str) -> None:
        """Somebody saw this run hang in a way that probes do not see."""
        if session is self._session:
            self._suspected = reason
            self._suspicion.set()

    async def supervise(self) -> None:
        """Start Triton and keep it running, for ever."""
        failures = 0
        while True:
            began_s = asyncio.get_running_loop().time()
            lost = await self._one_run()
            stable = asyncio.get_running_loop().time() - began_s > STABLE_AFTER_S
            failures = 1 if stable else failures + 1
            self.restarts += 1
            pause_s = backoff_s(failures, first_s=_RESTART_FIRST_S, cap_s=_RESTART_CAP_S)
            log.warning("triton restarting", reason=lost.reason, in_s=pause_s)
            await asyncio.sleep(pause_s)

    async def _one_run(self) -> _Lost:
        self._suspicion.clear()
        try:
            run = await self.launcher.start()
        except OSError as error:
            lost = _Lost(DOWN, f"cannot be started: {error}")
            self._set(lost.state, lost.reason)
            return lost
        grace = STOP_GRACE
        try:
            await self._until_live(run)
            await self._until_lost(run)
        except _Lost as lost:
            self._set(lost.state, lost.reason)
            grace = timedelta(0)
            return lost
        finally:
            await to_its_end(_ended(run, grace))
        raise AssertionError("a run ends by being lost")

    async def _until_live(self, run: Run) -> None:
        if not run.attached or self.state is READY:
            self._set(STARTING, "starting")
        exited = asyncio.create_task(run.exited())
        try:
            async with asyncio.timeout(None if run.attached else STARTUP_TIMEOUT_S):
                while not await _live(run):
                    if exited.done():
                        raise _Lost(DOWN, f"{exited.result()} while starting")
                    await asyncio.sleep(_STARTUP_POLL_S)
                await run.settle()
        except TritonRefused as error:
            raise _Lost(HUNG, f"not in order after its start: {error.reason}") from None
        except TimeoutError:
            raise _Lost(DOWN, f"not live {STARTUP_TIMEOUT_S:.0f} s after its start") from None
        finally:
            exited.cancel()

    async def _until_lost(self, run: Run) -> None:
        session = self._session = Session(run)
        self._live.set()
        self._set(READY, "")
        tasks = [
            asyncio.create_task(_crash(run), name="triton-exit"),
            asyncio.create_task(_hang(run), name="triton-probe"),
            asyncio.create_task(_standstill(run), name="triton-processes"),
            asyncio.create_task(self._accusation(), name="triton-suspicion"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            lost = done.pop().result()
            self.on_lost(lost.reason)
            raise lost
        finally:
            self._session = None
            self._live.clear()
            session.lost.set()
            for task in tasks:
                task.cancel()

    async def _accusation(self) -> _Lost:
        await self._suspicion.wait()
        return _Lost(HUNG, self._suspected)

    def _set(self, state: status_pb2.TritonState.ValueType, reason: str) -> None:
        if (state, reason) != (self.state, self.reason):
            self.state, self.reason = state, reason
            log.info("triton state", state=status_pb2.TritonState.Name(state), reason=reason)
            self.on_change()


async def _live(run: Run) -> bool:
    try:
        return await run.rpc.live(PROBE_TIMEOUT_S)
    except TritonRefused:
        return False


async def _crash(run: Run) -> _Lost:
    return _Lost(DOWN, await run.exited())


async def _hang(run: Run) -> _Lost:
    """Probe until it fails often enough in a row."""
    history = ProbeHistory(PROBE_TIMEOUT_S)
    loop = asyncio.get_running_loop()
    while not history.hung:
        began_s = loop.time()
        if await _live(run):
            history.succeeded()
            await _next_beat()
        else:
            took_s = loop.time() - began_s
            history.failed(took_s)
            await asyncio.sleep(max(0.0, PROBE_TIMEOUT_S - took_s))
    return _Lost(HUNG, f"no answer to {history.failures} probes of {PROBE_TIMEOUT_S} s")


async def _standstill(run: Run) -> _Lost:
    """Look at its processes until one of them has been stopped for too long."""
    history = Standstill()
    while not (pid := history.look(run.stopped(), asyncio.get_running_loop().time())):
        await _next_beat()
    return _Lost(HUNG, f"its process {pid} has stood still for {STILL_MAX_S} s")


async def _next_beat() -> None:
    """With what else an idle agent does each second."""
    await asyncio.sleep(PROBE_INTERVAL_S - asyncio.get_running_loop().time() % PROBE_INTERVAL_S)


async def _ended(run: Run, grace: timedelta) -> None:
    with contextlib.suppress(OSError):
        await run.end(grace)
