"""Starting in order, staying up, stopping in reverse."""

from __future__ import annotations

import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from busbar_runtime import logfile
from busbar_runtime.process import StartFailedError, State
from busbar_runtime.spec import Node, StepSpec, with_predecessors
from busbar_runtime.supervisor import Supervisor

DEAF = """
    import signal, socket, sys
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    while True:
        listener.accept()[0].close()
"""
FAILING = """
    print("the disk is on fire")
    raise SystemExit(7)
"""
MUTE = "import time; time.sleep(600)"
WITH_GRANDCHILD = """
    import socket, subprocess, sys
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(child.pid, flush=True)
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    while True:
        listener.accept()[0].close()
"""


def supervise(nodes: list[Node], processes: Any) -> Supervisor:
    return Supervisor(nodes, logs=processes.directory / "logs", announce=processes.said.append)


async def test_processes_start_after_what_they_need_and_stop_in_reverse(processes: Any) -> None:
    first = processes.listening("first")
    second = processes.listening("second", after=["first"])
    third = processes.listening("third", after=["second"])
    supervisor = supervise([first, second, third], processes)
    await supervisor.start()
    await supervisor.stop()

    assert [line.split(" (")[0] for line in processes.said] == [
        "first is ready",
        "second is ready",
        "third is ready",
        "third stopped",
        "second stopped",
        "first stopped",
    ]
    assert supervisor.pids() == {}


async def test_a_crash_is_announced_and_the_process_restarted_with_growing_delays(
    processes: Any, eventually: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    supervisor = supervise([processes.listening("gateway")], processes)
    await supervisor.start()
    gateway = supervisor.processes["gateway"]
    seen = set()
    for restarts in (1, 2, 3):
        seen.add(gateway.pid)
        await gateway.send(signal.SIGKILL)
        await eventually(lambda n=restarts: gateway.restarts == n and gateway.state is State.READY)
    await supervisor.stop()

    assert len(seen) == 3
    assert [line for line in processes.said if "exited" in line] == [
        "gateway exited (-9), restarting in 0.05 s",
        "gateway exited (-9), restarting in 0.1 s",
        "gateway exited (-9), restarting in 0.2 s",
    ]


async def test_a_process_that_does_not_stop_is_killed_after_its_grace(
    processes: Any, is_alive: Callable[[int], bool]
) -> None:
    spec = processes.listening("deaf", DEAF, stop_grace=timedelta(milliseconds=200))
    supervisor = supervise([spec], processes)
    await supervisor.start()
    pid = supervisor.pids()["deaf"]
    await supervisor.stop()

    assert not is_alive(pid)
    assert "deaf did not stop within 0.2 s: killed" in processes.said


async def test_a_process_that_always_fails_stops_the_start_and_shows_its_log(
    processes: Any,
) -> None:
    supervisor = supervise([processes.listening("broken", FAILING)], processes)
    with pytest.raises(
        StartFailedError, match=r"broken exited \(7\) before it was ready"
    ) as failure:
        await supervisor.start()
    await supervisor.stop()

    assert "the disk is on fire" in str(failure.value)


async def test_a_process_that_is_never_ready_stops_the_start(
    processes: Any, is_alive: Callable[[int], bool]
) -> None:
    spec = processes.listening("mute", MUTE, ready_timeout=timedelta(milliseconds=300))
    supervisor = supervise([spec], processes)
    with pytest.raises(StartFailedError, match=r"mute was not ready after 0\.3 s"):
        await supervisor.start()
    pid = supervisor.pids()["mute"]
    await supervisor.stop()

    assert not is_alive(pid)


async def test_a_missing_program_is_reported_as_such(processes: Any) -> None:
    spec = replace(processes.listening("ghost"), argv=["/does/not/exist"])
    supervisor = supervise([spec], processes)
    with pytest.raises(StartFailedError, match="No such file or directory"):
        await supervisor.start()
    await supervisor.stop()


async def test_a_process_that_once_was_ready_is_started_again_even_if_that_fails_at_first(
    processes: Any, eventually: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    attempts: list[int] = []

    def prepare() -> None:
        attempts.append(len(attempts))
        if len(attempts) == 2:
            raise OSError("no space left")

    supervisor = supervise([processes.listening("billing", before_start=prepare)], processes)
    await supervisor.start()
    billing = supervisor.processes["billing"]
    await billing.send(signal.SIGKILL)
    await eventually(lambda: len(attempts) == 3 and billing.state is State.READY)
    await supervisor.stop()

    assert "billing exited (not started: no space left), restarting in 0.1 s" in processes.said


async def test_a_failing_step_stops_the_start_before_what_comes_after_it(processes: Any) -> None:
    step = StepSpec(
        name="migrations", argv=["sh", "-c", "echo no such table; exit 3"], cwd=processes.directory
    )
    supervisor = supervise([step, processes.listening("billing", after=["migrations"])], processes)
    with pytest.raises(StartFailedError, match=r"(?s)migrations failed \(3\).*no such table"):
        await supervisor.start()
    await supervisor.stop()

    assert processes.said == []


async def test_a_stopped_process_takes_its_own_children_along(
    processes: Any,
    is_alive: Callable[[int], bool],
    eventually: Callable[[Callable[[], bool]], Awaitable[None]],
) -> None:
    supervisor = supervise([processes.listening("parent", WITH_GRANDCHILD)], processes)
    await supervisor.start()
    grandchild = int((processes.directory / "logs" / "parent.log").read_text())
    assert is_alive(grandchild)
    await supervisor.stop()

    await eventually(lambda: not is_alive(grandchild))


async def test_processes_do_not_see_the_launchers_own_settings(
    processes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUSBAR_HOME", "/somewhere")
    dump = [
        sys.executable,
        "-c",
        "import os; print(sorted(n for n in os.environ if 'BUSBAR' in n))",
    ]
    step = StepSpec(name="dump", argv=dump, cwd=processes.directory, env={"BUSBAR_REGION": "r1"})
    supervisor = supervise([step], processes)
    await supervisor.start()
    await supervisor.stop()

    assert (processes.directory / "logs" / "dump.log").read_text() == "['BUSBAR_REGION']\n"


def test_naming_a_part_brings_everything_it_comes_after(processes: Any) -> None:
    first = processes.listening("first")
    second = processes.listening("second", after=["first"])
    other = processes.listening("other")

    assert with_predecessors([first, other, second], ["second"]) == [first, second]


def test_naming_an_unknown_part_tells_which_there_are(processes: Any) -> None:
    with pytest.raises(ValueError, match="no part is called 'nato'; there are: nats"):
        with_predecessors([processes.listening("nats")], ["nato"])


def test_a_log_is_kept_within_its_bound(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("x" * 100)
    logfile.bound(log, max_bytes=99)

    assert log.read_text() == ""
    assert (tmp_path / "a.log.1").read_text() == "x" * 100
