"""A launcher as a test needs it: a process that starts a child in a session of its own.

`python guarded_launcher.py DIRECTORY PORT` writes the process ids of all four generations.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from busbar_runtime import probes
from busbar_runtime.descendants import kill_strays
from busbar_runtime.ports import LOOPBACK
from busbar_runtime.spec import ProcessSpec
from busbar_runtime.supervisor import Supervisor
from busbar_runtime.warden import run_guarded

# Like a service that starts Triton, which starts its stubs.
PROGRAM = """
import pathlib, socket, subprocess, sys
stub = [sys.executable, "-c", "import time; time.sleep(600)"]
child = subprocess.Popen(stub, start_new_session=True)
pathlib.Path(sys.argv[2]).write_text(str(child.pid))
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    listener.accept()[0].close()
"""


async def supervise(directory: Path, port: int) -> int:
    stub_file = directory / "stub"
    spec = ProcessSpec(
        name="service",
        argv=[sys.executable, "-c", PROGRAM, str(port), str(stub_file)],
        cwd=directory,
        ready=probes.tcp(LOOPBACK, port),
    )
    supervisor = Supervisor([spec], logs=directory / "logs", announce=print, sweep=kill_strays)
    await supervisor.start()
    pids = {
        "warden": os.getppid(),
        "supervisor": os.getpid(),
        "service": supervisor.pids()["service"],
        "stub": int(stub_file.read_text()),
    }
    (directory / "pids.new").write_text(json.dumps(pids))
    (directory / "pids.new").rename(directory / "pids")
    await asyncio.Event().wait()
    return 0


def main() -> int:
    directory, port = Path(sys.argv[1]), int(sys.argv[2])
    return run_guarded(
        lambda: asyncio.run(supervise(directory, port)), cleaned=(directory / "cleaned").touch
    )


if __name__ == "__main__":
    sys.exit(main())
