"""A full disk: what is kept running is started again and written down once there is room."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from busbar_runtime import logfile
from busbar_runtime.platform import Platform
from busbar_runtime.process import State
from busbar_runtime.supervisor import Supervisor

SIZE_BYTES = 16 * 1024 * 1024
FILLING_BYTES = 4096

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


@dataclass(frozen=True)
class Disk:
    """A disk of its own, small enough to be filled at once."""

    path: Path

    def fill(self) -> None:
        filling = os.open(self.path / "filling", os.O_WRONLY | os.O_CREAT)
        try:
            while True:
                os.write(filling, bytes(FILLING_BYTES))
        except OSError as problem:
            if problem.errno != errno.ENOSPC:
                raise
        finally:
            os.close(filling)

    def free(self) -> None:
        (self.path / "filling").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    at = tmp_path / "disk"
    at.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "tmpfs", str(at)]
    if os.geteuid() != 0 or subprocess.call(mount, stderr=subprocess.DEVNULL) != 0:
        pytest.skip("a disk of a chosen size is a tmpfs, and only root may mount one")
    yield Disk(at)
    subprocess.run(["umount", "--lazy", str(at)], check=True)


async def test_what_dies_while_the_disk_is_full_runs_and_is_written_down_once_there_is_room(
    disk: Disk, eventually: Eventually
) -> None:
    async with Platform(disk.path / "home", parts=["nats"]) as platform:
        before = platform.pids["nats"]
        disk.fill()
        await platform.kill("nats", signal.SIGKILL)
        disk.free()
        await platform.wait_ready("nats")
        nats = (await platform.status())["processes"]["nats"]
        await eventually(lambda: platform.pids.get("nats") == nats["pid"])

        assert nats["restarts"] >= 1
        assert nats["pid"] != before
        await eventually(lambda: "nats is ready again" in platform.log("console"))


async def test_what_is_stopped_while_the_disk_is_full_starts_once_there_is_room(
    disk: Disk, eventually: Eventually
) -> None:
    async with Platform(disk.path / "home", parts=["nats"]) as platform:
        disk.fill()
        await platform.stop("nats")
        stopped = (await platform.status())["processes"]["nats"]["state"]
        disk.free()
        await platform.start("nats")
        pid = (await platform.status())["processes"]["nats"]["pid"]
        await eventually(lambda: platform.pids.get("nats") == pid)

    assert stopped == "stopped"


async def test_a_change_that_could_not_be_told_is_told_again_until_it_is(
    processes: Any, eventually: Eventually
) -> None:
    told: list[list[str]] = []
    attempts: list[int] = []

    def note() -> None:
        attempts.append(1)
        if len(attempts) in {1, 2}:
            raise OSError(errno.ENOSPC, "No space left on device")
        told.append(list(supervisor.pids()))

    supervisor = Supervisor(
        [processes.listening("gateway")],
        logs=processes.directory / "logs",
        announce=processes.said.append,
        changed=note,
    )
    await supervisor.start()
    gateway = supervisor.processes["gateway"]
    await eventually(lambda: ["gateway"] in told)
    await supervisor.stop()

    assert gateway.restarts == 0


async def test_what_failed_to_start_for_good_can_be_started_once_the_cause_is_gone(
    processes: Any,
) -> None:
    in_the_way = [True]

    def prepare() -> None:
        if in_the_way:
            raise OSError(errno.ENOSPC, "No space left on device")

    supervisor = Supervisor(
        [processes.listening("billing", before_start=prepare)],
        logs=processes.directory / "logs",
        announce=processes.said.append,
    )
    (processes.directory / "logs").mkdir()
    billing = supervisor.processes["billing"]
    with pytest.raises(OSError, match="No space left on device"):
        await billing.start()
    meanwhile = billing.state
    in_the_way.clear()
    await billing.start()

    assert (meanwhile, billing.state) == (State.STOPPED, State.READY)

    await supervisor.stop()


def test_a_log_that_cannot_be_moved_aside_stays_and_is_moved_when_there_is_room(
    disk: Disk,
) -> None:
    log = disk.path / "a.log"
    log.write_text("x" * 10_000)
    disk.fill()
    logfile.bound(log, max_bytes=99)
    kept = log.read_text()
    disk.free()
    logfile.bound(log, max_bytes=99)

    assert kept == "x" * 10_000
    assert (log.read_text(), (disk.path / "a.log.1").read_text()) == ("", kept)
