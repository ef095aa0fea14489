"""Logs go to standard output; what cannot be written there ends nothing."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

CONFIGURED = """
import logging, resource, sys
import structlog
from busbar_observability.logs import configure_logging
configure_logging("billing")
log = structlog.get_logger()
"""
SERVING = """
for n in range(500):
    log.info("charged", n=n)
    logging.getLogger("uvicorn.error").error("refused %s", n)
sys.stderr.write("served on")
"""
# A file that may grow again: what a full disk is once somebody made room.
ROOM_AGAIN = """
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
for n in range(500):
    log.info("charged", n=n)
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
log.info("room again")
"""


def test_a_full_disk_under_the_log_ends_no_service() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", CONFIGURED + SERVING],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert (done.returncode, done.stderr) == (0, "served on")


def test_a_log_that_nobody_reads_any_more_ends_no_service() -> None:
    service = subprocess.Popen(
        [sys.executable, "-c", CONFIGURED + "sys.stdin.read()" + SERVING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert service.stdout is not None
    service.stdout.close()
    service.stdout = None
    _, said = service.communicate("", timeout=20)

    assert (service.returncode, said) == (0, "served on")


def test_lines_are_written_whole_again_once_there_is_room(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    log = tmp_path / "billing.log"
    with log.open("a") as file:
        done = subprocess.run(
            [sys.executable, "-c", CONFIGURED + ROOM_AGAIN],
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    lines = [json.loads(line) for line in log.read_text().splitlines()]

    assert (done.returncode, done.stderr) == (0, "")
    assert [line["n"] for line in lines[:20]] == list(range(20))
    assert (lines[-1]["event"], lines[-1]["service"]) == ("room again", "billing")
