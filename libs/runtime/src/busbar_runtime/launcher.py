"""Starting and ending the daemon behind a platform, from a command line or a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import timedelta

from busbar_runtime import endpoints, logfile
from busbar_runtime.control import ControlClient, ControlError, PlatformNotRunningError
from busbar_runtime.daemon import ALREADY_RUNNING, SETTINGS_VARIABLE, LaunchSettings
from busbar_runtime.home import Home

POLL_S = 0.05
STOP_TIMEOUT = timedelta(seconds=120)


class LaunchFailedError(RuntimeError):
    """The platform did not come up; the message ends with what it said."""


class AlreadyRunningError(LaunchFailedError):
    """Somebody else started a platform in this home before ours could."""


def spawn(home: Home, settings: LaunchSettings) -> subprocess.Popen[bytes]:
    """Start the daemon in its own session. With `follow_stdin` it ends when our end closes."""
    home.make()
    console = logfile.open_append(home.console_log)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "busbar_runtime.daemon", str(home.root), str(home.cache)],
            stdin=subprocess.PIPE if settings.follow_stdin else subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            env={**os.environ, SETTINGS_VARIABLE: settings.as_json()},
            start_new_session=True,
        )
    finally:
        os.close(console)


@contextmanager
def console_lines(home: Home) -> Generator[Callable[[], str]]:
    """Gives a function that returns what the platform has said since it was last called."""
    home.make()
    home.console_log.touch()
    with home.console_log.open(errors="replace") as console:
        console.seek(0, os.SEEK_END)

        def more() -> str:
            if home.console_log.stat().st_size < console.tell():  # cut back to its bound
                console.seek(0)
            return console.read()

        yield more


def wait_until_ready(
    home: Home, daemon: subprocess.Popen[bytes] | None, show: Callable[[str], None]
) -> None:
    """Return once everything is ready; raises LaunchFailedError when the daemon gives up.

    Without a `daemon` it waits for the one that somebody else has started. AlreadyRunningError
    says that ours met such a one.
    """
    said: list[str] = []
    with console_lines(home) as more:
        while True:
            if text := more():
                said.append(text)
                show(text)
            gone = daemon.poll() is not None if daemon else not home.is_running()
            if gone:
                rest = more()
                show(rest)
                if daemon and daemon.returncode == ALREADY_RUNNING:
                    raise AlreadyRunningError(f"a platform is running in {home.root} already")
                raise LaunchFailedError("the platform did not start:\n" + "".join([*said, rest]))
            with (
                suppress(PlatformNotRunningError, ControlError),
                ControlClient(home.run) as control,
            ):
                status = control.ask("status")
                ours = daemon is None or status["warden"] == daemon.pid
                if ours and status["phase"] == "ready":
                    show(more())
                    return
            time.sleep(POLL_S)


def shutdown(home: Home, timeout: timedelta = STOP_TIMEOUT) -> bool:
    """Stop whatever runs in this home and wait until all is gone; False when nothing ran."""
    if not home.is_running():
        endpoints.remove(home)
        return False
    deadline_s = time.monotonic() + timeout.total_seconds()
    asked = False
    while home.is_running():
        if not asked:
            asked = _ask_to_stop(home)
        if time.monotonic() > deadline_s:
            raise LaunchFailedError(
                f"the platform in {home.root} did not stop; see {home.console_log}"
            )
        time.sleep(POLL_S)
    return True


def _ask_to_stop(home: Home) -> bool:
    # The socket may not be there yet, or not any more: the caller asks again while it runs.
    try:
        with ControlClient(home.run) as control:
            control.ask("shutdown")
    except PlatformNotRunningError:
        return False
    return True


def end_daemon(daemon: subprocess.Popen[bytes]) -> int:
    """Close our end of its standard input and wait; SIGTERM for one that does not follow it."""
    if daemon.stdin:
        daemon.stdin.close()
    else:
        daemon.send_signal(signal.SIGTERM)
    return daemon.wait(STOP_TIMEOUT.total_seconds())
