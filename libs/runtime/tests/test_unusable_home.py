"""A state directory that cannot be one is told in one line, whatever was asked of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from busbar_runtime.home import Home

COMMANDS = [
    "up",
    "up --foreground",
    "exec -- true",
    "down",
    "status",
    "logs gateway",
    "run gateway",
]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A directory that nobody may write in, root included."""
    at = tmp_path / "read-only"
    at.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(at)]
    if os.geteuid() != 0 or subprocess.call(mount, stderr=subprocess.DEVNULL) != 0:
        pytest.skip("only root may mount a read-only disk")
    Home.of(at / "made-before").make()
    subprocess.run(["mount", "-o", "remount,ro", str(at)], check=True)
    yield at
    subprocess.run(["umount", "--lazy", str(at)], check=True)


def asked(command: str, home: Path) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own: some change what signals do to theirs."""
    word, *rest = command.split()
    return subprocess.run(
        [sys.executable, "-m", "busbar_runtime", word, "--home", str(home), *rest],
        check=False,
        capture_output=True,
        text=True,
    )


def the_one_line(said: str) -> str:
    (line,) = said.splitlines()
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_in_its_place_is_told_in_one_line(command: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    done = asked(command, file)

    assert done.returncode != 0
    line = the_one_line(done.stderr)
    assert str(file) in line or "no log of 'gateway'" in line
    assert file.read_text() == "mine"


@pytest.mark.parametrize("name", ["new", "made-before"])
@pytest.mark.parametrize("command", COMMANDS[:3])
def test_a_read_only_disk_is_told_in_one_line(command: str, name: str, read_only: Path) -> None:
    home = read_only / name
    done = asked(command, home)

    assert done.returncode == 1
    line = the_one_line(done.stderr)
    assert line.startswith(f"Read-only file system: {home}")
    assert line.endswith(f"{home} is the state directory: --home or BUSBAR_HOME names another")


def test_a_command_that_does_not_exist_is_told_in_one_line(tmp_path: Path) -> None:
    done = asked("exec --only nats -- /no/such/command", tmp_path)

    assert done.returncode == 1
    assert the_one_line(done.stderr) == "No such file or directory: /no/such/command"
    assert "nats stopped" in done.stdout
