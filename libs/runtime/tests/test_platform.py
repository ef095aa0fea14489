"""The daemon with real NATS and Postgres: start, restart, take over, end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from busbar_runtime import launcher
from busbar_runtime.__main__ import main as command_line
from busbar_runtime.control import ControlClient, ControlError, PlatformNotRunningError
from busbar_runtime.daemon import LaunchSettings
from busbar_runtime.home import Home
from busbar_runtime.launcher import LaunchFailedError
from busbar_runtime.platform import Platform
from busbar_runtime.postgres import binary

PARTS = ["nats", "postgres-database"]
NOBODY = 65534

Alive = Callable[[int], bool]
Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.fixture(scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    async with Platform(tmp_path_factory.mktemp("platform"), parts=PARTS) as running:
        yield running


def query(dsn: str, sql: str) -> str:
    asked = [binary("psql"), "--no-psqlrc", "--tuples-only", "--no-align", dsn, "--command", sql]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


async def test_a_killed_part_is_announced_restarted_and_its_new_pid_written(
    platform: Platform,
) -> None:
    before = platform.pids["nats"]
    await platform.kill("nats", signal.SIGKILL)
    await platform.wait_ready("nats")
    status = (await platform.status())["processes"]["nats"]

    assert status["restarts"] == 1
    assert platform.pids["nats"] == status["pid"] != before
    assert "nats exited (-9), restarting in 0.5 s" in platform.log("console")


def test_the_log_of_a_part_is_shown_as_far_back_as_wanted(
    platform: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ["--home", str(platform.home.root)]
    shown = command_line(["logs", "nats", "--lines", "3", *home])
    lines = capsys.readouterr().out.splitlines()
    unknown = command_line(["logs", "nast", *home])
    said = capsys.readouterr()

    assert (shown, len(lines)) == (0, 3)
    assert all(line in platform.log("nats") for line in lines)
    assert (unknown, said.out) == (1, "")
    assert "no log of 'nast'; there are: console, nats, postgres" in said.err


async def test_postgres_recovers_from_a_kill_with_what_it_had_committed(platform: Platform) -> None:
    dsn = platform.endpoints["postgres"]
    query(dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
    await platform.kill("postgres", signal.SIGKILL)
    await platform.wait_ready("postgres")

    assert query(dsn, "SELECT answer FROM kept") == "42"


async def test_a_stopped_part_stays_stopped_until_it_is_started(platform: Platform) -> None:
    await platform.stop("nats")

    assert "nats" not in platform.pids

    await platform.start("nats")

    assert "nats" in platform.pids


async def test_endpoints_are_readable_by_their_owner_only(platform: Platform) -> None:
    assert platform.home.endpoints_file.stat().st_mode & 0o777 == 0o600


async def test_unknown_requests_are_refused_with_what_there_is(platform: Platform) -> None:
    with ControlClient(platform.home.run) as control:
        with pytest.raises(
            ControlError, match="no process is called 'x'; there are: nats, postgres"
        ):
            control.ask("restart", name="x")
        with pytest.raises(ControlError, match="unknown command 'explode'"):
            control.ask("explode")


async def test_a_process_taken_over_comes_back_when_the_taker_is_gone(
    platform: Platform, eventually: Eventually
) -> None:
    control = ControlClient(platform.home.run)
    how = control.ask("take-over", name="nats")

    assert "nats" not in platform.pids
    assert how["argv"][0].endswith("nats-server")
    with (
        ControlClient(platform.home.run) as other,
        pytest.raises(ControlError, match="taken over already"),
    ):
        other.ask("take-over", name="nats")

    control.ask("run-by-hand", name="nats", pid=os.getpid())
    shown = control.ask("status")["processes"]["nats"]
    assert (shown["state"], shown["pid"]) == ("by hand", os.getpid())

    control.close()

    await eventually(lambda: platform.pids.get("nats") not in {None, os.getpid()})
    await platform.wait_ready("nats")


async def test_a_second_platform_in_the_same_home_is_refused(platform: Platform) -> None:
    with pytest.raises(LaunchFailedError, match=r"is running in .* already"):
        Platform(platform.home.root, parts=["nats"]).launch()

    assert (await platform.status())["phase"] == "ready"


async def test_starting_what_runs_already_says_so_and_where_everything_is(
    platform: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ["--home", str(platform.home.root)]
    again = command_line(["up", *home])
    said = capsys.readouterr().out
    attached = command_line(["up", "--foreground", *home])

    assert again == 0
    assert "already running" in said
    assert platform.endpoints["nats"] in said
    assert attached == 1
    assert "./just down" in capsys.readouterr().out


async def test_two_platforms_run_side_by_side_and_keep_their_data_over_a_restart(
    platform: Platform, tmp_path: Path
) -> None:
    async with Platform(tmp_path, parts=PARTS) as other:
        assert set(other.pids.values()).isdisjoint(platform.pids.values())
        query(other.endpoints["postgres"], "CREATE TABLE mine ()")
    async with Platform(tmp_path, parts=PARTS) as again:
        assert query(again.endpoints["postgres"], "SELECT count(*) FROM mine") == "0"

    assert not other.home.endpoints_file.exists()
    assert not other.home.is_running()


async def test_parts_stop_in_reverse_order(tmp_path: Path) -> None:
    async with Platform(tmp_path, parts=PARTS) as short:
        pass

    assert [line for line in short.log("console").splitlines() if "stopped" in line] == [
        "postgres stopped",
        "nats stopped",
    ]


@pytest.mark.parametrize("victim", ["supervisor", "warden"])
async def test_a_killed_launcher_leaves_no_process_behind(
    victim: str, tmp_path: Path, is_alive: Alive, eventually: Eventually
) -> None:
    running = Platform(tmp_path, parts=PARTS)
    running.launch()
    pids = [running.endpoints["launcher"], running.daemon_pid, *running.pids.values()]
    os.kill(pids[0] if victim == "supervisor" else pids[1], signal.SIGKILL)
    await eventually(lambda: not any(is_alive(pid) for pid in pids))
    running.shutdown()

    assert not running.home.is_running()


async def test_a_platform_ends_when_the_process_that_asked_for_it_is_killed(
    tmp_path: Path, is_alive: Alive, eventually: Eventually
) -> None:
    program = [sys.executable, "-m", "busbar_runtime", "up", "--foreground", "--only", "nats"]
    attached = subprocess.Popen([*program, "--home", str(tmp_path)], stdout=subprocess.DEVNULL)
    home = Home.of(tmp_path)
    await eventually(lambda: _phase(home) == "ready")
    pids = list(json.loads(home.endpoints_file.read_text())["pids"].values())
    attached.kill()
    attached.wait(10)
    await eventually(lambda: not any(is_alive(pid) for pid in pids))
    await eventually(lambda: not home.is_running())

    assert _phase(home) != "ready"


async def test_an_attached_platform_ends_when_the_shell_around_it_is_killed(
    tmp_path: Path, is_alive: Alive, eventually: Eventually
) -> None:
    up = f"{sys.executable} -m busbar_runtime up --foreground --only nats --home {tmp_path}"
    shell = subprocess.Popen(["sh", "-c", f"{up}; true"], stdout=subprocess.DEVNULL)
    home = Home.of(tmp_path)
    await eventually(lambda: _phase(home) == "ready")
    pids = list(json.loads(home.endpoints_file.read_text())["pids"].values())
    shell.kill()
    shell.wait(10)
    await eventually(lambda: not any(is_alive(pid) for pid in pids))
    await eventually(lambda: not home.is_running())

    assert _phase(home) != "ready"


async def test_ctrl_c_stops_an_attached_platform(tmp_path: Path, eventually: Eventually) -> None:
    program = [sys.executable, "-m", "busbar_runtime", "up", "--foreground", "--only", "nats"]
    attached = subprocess.Popen(
        [*program, "--home", str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    home = Home.of(tmp_path)
    await eventually(lambda: _phase(home) == "ready")
    attached.send_signal(signal.SIGINT)
    output, _ = attached.communicate(timeout=20)

    assert attached.returncode == 0
    assert "stopping" in output
    assert "nats stopped" in output
    assert not home.is_running()


async def test_ctrl_c_at_the_terminal_stops_everything_in_reverse_order(
    tmp_path: Path, is_alive: Alive, eventually: Eventually
) -> None:
    program = [sys.executable, "-m", "busbar_runtime", "up", "--foreground"]
    only = [word for part in PARTS for word in ("--only", part)]
    attached = subprocess.Popen(
        [*program, *only, "--home", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a terminal signals the whole group of what runs in front
    )
    home = Home.of(tmp_path)
    await eventually(lambda: _phase(home) == "ready")
    pids: dict[str, int] = json.loads(home.endpoints_file.read_text())["pids"]
    os.killpg(attached.pid, signal.SIGINT)
    output, _ = attached.communicate(timeout=60)

    stopped = re.findall(r"(\S+) stopped", output)
    assert attached.returncode == 0
    assert set(stopped) >= {"nats", "postgres"}
    assert stopped == list(reversed(pids))
    assert not home.is_running()
    assert not any(is_alive(pid) for pid in pids.values())


@pytest.mark.parametrize("when", ["starting", "ready"])
async def test_a_command_that_was_interrupted_does_not_look_failed(
    tmp_path: Path, eventually: Eventually, when: str
) -> None:
    program = [sys.executable, "-m", "busbar_runtime", "exec", "--home", str(tmp_path)]
    attached = subprocess.Popen(
        [*program, "--only", "nats", "--", "sleep", "60"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    home = Home.of(tmp_path)
    await eventually(lambda: _phase(home) in ("starting", "ready"))
    if when == "ready":
        await eventually(lambda: _phase(home) == "ready")
    os.killpg(attached.pid, signal.SIGINT)
    output, _ = attached.communicate(timeout=20)

    assert attached.returncode == 130
    assert "nats stopped" in output
    assert not home.is_running()


async def test_a_background_platform_stays_until_it_is_told_to_stop(
    tmp_path: Path, eventually: Eventually
) -> None:
    command = [sys.executable, "-m", "busbar_runtime"]
    up = subprocess.run([*command, "up", "--only", "nats", "--home", str(tmp_path)], check=False)
    home = Home.of(tmp_path)

    assert up.returncode == 0
    assert _phase(home) == "ready"

    down = subprocess.run([*command, "down", "--home", str(tmp_path)], check=False)

    assert down.returncode == 0
    assert not home.is_running()
    assert launcher.shutdown(home) is False


async def test_a_failed_start_says_which_part_and_why(tmp_path: Path) -> None:
    broken = Home.of(tmp_path)
    broken.make()
    (broken.data / "nats").write_text("in the way")
    with pytest.raises(
        LaunchFailedError, match=r"(?s)nats exited \(1\) before it was ready.*not a directory"
    ):
        Platform(tmp_path, parts=["nats"]).launch()

    assert not broken.is_running()


@pytest.mark.parametrize("command", ["up", "down", "status", "run gateway"])
def test_an_unknown_argument_is_told_the_usage_of_its_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        command_line([*command.split(), "--bogus"])

    said = capsys.readouterr().err
    assert f"usage: ./just {command.split(maxsplit=1)[0]} " in said
    assert "unrecognized arguments: --bogus" in said


def test_an_unknown_part_or_port_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LaunchFailedError, match="no part is called 'nato'"):
        Platform(tmp_path, parts=["nato"]).launch()
    home = Home.of(tmp_path)
    daemon = launcher.spawn(home, LaunchSettings(parts=["nats"], ports={"web": 1}))
    with pytest.raises(LaunchFailedError, match="no listener is called"):
        launcher.wait_until_ready(home, daemon, lambda _text: None)


def test_a_port_that_cannot_be_had_stops_the_start_with_one_line(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "busbar_runtime", "up", "--only", "nats"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = [
            subprocess.run(
                [*command, "--home", str(tmp_path), "--port", f"nats={number}"],
                check=False,
                capture_output=True,
                text=True,
            )
            for number in (port, 99_999)
        ]

    assert [up.returncode for up in done] == [1, 1]
    assert [up.stdout.strip() for up in done] == [
        f"start failed: nats: port {port} cannot be had: Address already in use",
        "start failed: nats: 99999 is no port: 1 to 65535 are",
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as a normal user already")
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
async def test_it_works_for_a_user_who_is_not_root(tmp_path: Path, eventually: Eventually) -> None:
    somebody = ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"]
    command = [*somebody, sys.executable, "-m", "busbar_runtime", "exec", "--home", str(tmp_path)]
    parts = [part for name in PARTS for part in ("--only", name)]
    done = subprocess.run(
        [*command, *parts, "--", "id", "-u"], check=False, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"\n{NOBODY}\n" in done.stdout


def test_sockets_work_however_deep_the_home_lies(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    running = Platform(deep, parts=["nats"])
    running.launch()
    running.shutdown()

    with pytest.raises(PlatformNotRunningError):
        ControlClient(running.home.run)


def _phase(home: Home) -> str:
    try:
        with ControlClient(home.run) as control:
            return control.ask("status")["phase"]
    except (PlatformNotRunningError, FileNotFoundError):
        return "absent"
