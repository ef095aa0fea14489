"""`./just run SERVICE`: Ctrl-C at any time ends the service, and says nothing about Python."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import sys
from busbar_runtime.__main__ import start_by_hand, status_by_hand
how = {"argv": [sys.executable, "-c", sys.argv[1]], "cwd": ".", "env": {}}
process = start_by_hand(how)
sys.exit(status_by_hand(process))
"""
STARTING = "print('begun', flush=True)\nwhile True: pass"
SERVING = """
import asyncio, signal
async def serve():
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print("begun", flush=True)
    await stop.wait()
    print("drained")
asyncio.run(serve())
"""


@pytest.mark.parametrize(
    ("program", "said"),
    [(STARTING, ""), (SERVING, "drained\n"), ("print('begun'); raise SystemExit(3)", "")],
    ids=["while it starts", "while it serves", "after it failed"],
)
def test_an_interrupt_ends_the_service_without_a_traceback(
    tmp_path: Path, program: str, said: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, program],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    if "SystemExit" not in program:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to both
    out, complaints = process.communicate(timeout=20)

    assert (out, complaints) == (said, "")
    assert process.returncode == (3 if "SystemExit" in program else 0)
