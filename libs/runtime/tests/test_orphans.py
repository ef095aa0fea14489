"""Whoever is killed, nothing that was started stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from busbar_runtime.ports import PortPool

LAUNCHER = Path(__file__).with_name("guarded_launcher.py")

Alive = Callable[[int], bool]
Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.fixture
async def pids(tmp_path: Path, eventually: Eventually) -> AsyncIterator[dict[str, int]]:
    pool = PortPool()
    launcher = subprocess.Popen(
        [sys.executable, str(LAUNCHER), str(tmp_path), str(pool.take())], start_new_session=True
    )
    await eventually((tmp_path / "pids").exists)
    yield json.loads((tmp_path / "pids").read_text())
    launcher.terminate()
    launcher.wait(10)
    pool.close()


async def test_killing_the_supervisor_ends_services_and_what_they_started(
    pids: dict[str, int], tmp_path: Path, is_alive: Alive, eventually: Eventually
) -> None:
    os.kill(pids["supervisor"], signal.SIGKILL)

    await eventually(lambda: not any(is_alive(pid) for pid in pids.values()))
    assert (tmp_path / "cleaned").exists()


async def test_killing_the_warden_ends_the_supervisor_and_its_services(
    pids: dict[str, int], is_alive: Alive, eventually: Eventually
) -> None:
    os.kill(pids["warden"], signal.SIGKILL)
    await eventually(lambda: not is_alive(pids["supervisor"]) and not is_alive(pids["service"]))

    assert is_alive(pids["stub"])  # nobody is left who could end it; the daemon stops in order
    os.kill(pids["stub"], signal.SIGKILL)


async def test_killing_a_service_ends_what_it_started_before_it_runs_again(
    pids: dict[str, int], tmp_path: Path, is_alive: Alive, eventually: Eventually
) -> None:
    os.kill(pids["service"], signal.SIGKILL)

    await eventually(lambda: not is_alive(pids["stub"]))
    await eventually(lambda: int((tmp_path / "stub").read_text() or 0) not in (0, pids["stub"]))
    assert is_alive(pids["supervisor"])


GROUP_LEADER = """
import subprocess, sys
from busbar_runtime.child import tethered
leader = ["sh", "-c", "trap '' TERM; sleep 600 & echo $$ $!; wait"]
subprocess.Popen(tethered(leader, group=True), start_new_session=True).wait()
"""


async def test_killing_a_process_ends_a_group_that_is_tied_to_it(
    is_alive: Alive, eventually: Eventually
) -> None:
    parent = subprocess.Popen([sys.executable, "-c", GROUP_LEADER], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    group = [int(pid) for pid in parent.stdout.readline().split()]
    alive_before = [is_alive(pid) for pid in group]

    parent.kill()
    parent.wait(10)

    await eventually(lambda: not any(is_alive(pid) for pid in group))
    assert alive_before == [True, True]
