"""`./just up` twice at the same moment: one starts the platform, and both wait for it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from busbar_runtime.home import Home

TIMES = 50


def test_who_comes_second_waits_for_the_platform_like_who_starts_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "busbar_runtime"]
    where = ["--home", str(tmp_path)]
    both = [
        subprocess.Popen(
            [*command, "up", "--only", "nats", *where],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [up.communicate(timeout=60) for up in both]
    subprocess.run([*command, "down", *where], check=True)

    assert [(up.returncode, err) for up, (_, err) in zip(both, said, strict=True)] == [(0, "")] * 2
    assert all("all of it: " in out for out, _ in said)


def test_who_asks_whether_a_home_is_taken_keeps_nobody_from_taking_it(tmp_path: Path) -> None:
    home = Home.of(tmp_path)
    home.make()
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            home.is_running()

    asking = threading.Thread(target=ask)
    asking.start()
    refused = 0
    try:
        for _ in range(TIMES):
            held = home.hold()
            if held is None:
                refused += 1
            else:
                os.close(held)
    finally:
        over.set()
        asking.join()

    assert refused == 0
