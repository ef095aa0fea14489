"""The launcher's command line: `python -m busbar_runtime up | down | logs SERVICE | ...`."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from busbar_runtime import endpoints, launcher, logfile
from busbar_runtime.child import tethered
from busbar_runtime.control import ControlClient, ControlError, PlatformNotRunningError
from busbar_runtime.daemon import LaunchSettings
from busbar_runtime.descendants import signal_me_when_my_parent_dies
from busbar_runtime.fleet import HUB_SERVERS, SITES_MAX
from busbar_runtime.home import Home
from busbar_runtime.process import inherited_environment
from busbar_runtime.services import SERVICES, Ports

FAILED, NOT_RUNNING, USAGE, INTERRUPTED = 1, 2, 64, 130
LOG_LINES = 200
TABLE = ("http", "grpc", "account", "console", "otlp", "otlp_grpc", "nats", "postgres")


def show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def settings_of(args: argparse.Namespace, *, follow_stdin: bool) -> LaunchSettings:
    ports: dict[str, int] = {}
    for given in args.port or []:
        name, _, number = given.partition("=")
        if not number.isdigit():
            raise SystemExit(
                f"--port wants NAME=NUMBER, not {given!r}; names: {', '.join(Ports.NAMES)}"
            )
        ports[name] = int(number)
    return LaunchSettings(
        parts=args.only or (),
        ports=ports,
        follow_stdin=follow_stdin,
        sites=args.sites,
        hub_servers=args.hub_servers,
    )


def up(args: argparse.Namespace, home: Home) -> int:
    if home.is_running():
        show(f"a platform is already running in {home.root}\n")
        return join(args, home)
    if args.foreground:
        signal_me_when_my_parent_dies(signal.SIGTERM)
    signal.signal(signal.SIGTERM, _interrupt)
    daemon = launcher.spawn(home, settings_of(args, follow_stdin=args.foreground))
    try:
        launcher.wait_until_ready(home, daemon, show)
        print_status(home)
        return stay(home, daemon) if args.foreground else 0
    except launcher.AlreadyRunningError:  # by somebody who was faster
        return join(args, home)
    except KeyboardInterrupt:
        return stop_shown(home, daemon)


def join(args: argparse.Namespace, home: Home) -> int:
    """Wait for the platform that somebody else has started."""
    if args.foreground:
        show("stop it first: ./just down\n")
        return FAILED
    launcher.wait_until_ready(home, None, show)
    print_status(home)
    return 0


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def stay(home: Home, daemon: subprocess.Popen[bytes]) -> int:
    """Show what happens until Ctrl-C or until the daemon is gone."""
    show("Ctrl-C stops everything.\n")
    with launcher.console_lines(home) as more:
        while daemon.poll() is None:
            show(more())
            time.sleep(launcher.POLL_S)
        show(more())
    print("the platform is gone", file=sys.stderr)
    return FAILED


def stop_shown(home: Home, daemon: subprocess.Popen[bytes]) -> int:
    """Stop it and show how; a second Ctrl-C does not cut the first one short."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    show("\nstopping\n")
    with launcher.console_lines(home) as more:
        if daemon.stdin:
            daemon.stdin.close()
        else:
            daemon.send_signal(signal.SIGTERM)
        while daemon.poll() is None:
            show(more())
            time.sleep(launcher.POLL_S)
        show(more())
    return daemon.returncode


def down(_args: argparse.Namespace, home: Home) -> int:
    if not home.run.exists() or not home.is_running():
        print(f"nothing is running in {home.root}")
        endpoints.remove(home)
        return 0
    with launcher.console_lines(home) as more:
        launcher.shutdown(home)
        show(more())
    return 0


def status(_args: argparse.Namespace, home: Home) -> int:
    print_status(home)
    return 0


def print_status(home: Home) -> None:
    with ControlClient(home.run) as control:
        answer = control.ask("status")
    found = endpoints.read(home)
    print()
    for name in TABLE:
        if name in found:
            print(f"  {name:<12} {_without_password(found[name])}")
    for name, key in found.get("keys", {}).items():
        print(f"  {name + ' key':<12} {key}")
    print(f"\n  {'process':<12} {'pid':>8}  {'state':<9} restarts")
    for name, process in answer["processes"].items():
        print(
            f"  {name:<12} {process['pid'] or '-':>8}  {process['state']:<9} {process['restarts']}"
        )
    print(f"\n  all of it: {home.endpoints_file}   logs: {home.logs}\n")


def _without_password(address: str) -> str:
    scheme, separator, rest = address.partition("://")
    credentials, at, host = rest.rpartition("@")
    return f"{scheme}{separator}{credentials.partition(':')[0]}{at}{host}"


def logs(args: argparse.Namespace, home: Home) -> int:
    path = home.logs / f"{args.service}.log"
    if not path.exists():
        known = sorted(log.stem for log in home.logs.glob("*.log")) if home.logs.exists() else []
        print(
            f"no log of {args.service!r}; there are: {', '.join(known) or 'none yet'}",
            file=sys.stderr,
        )
        return FAILED
    for line in logfile.tail(path, args.lines):
        print(line)
    try:
        with path.open(errors="replace") as log:
            log.seek(0, os.SEEK_END)
            while args.follow:
                if path.stat().st_size < log.tell():
                    log.seek(0)
                show(log.read())
                time.sleep(launcher.POLL_S)
    except KeyboardInterrupt:
        pass
    return 0


def run(args: argparse.Namespace, home: Home) -> int:
    """Take a service over from the running platform until it exits here."""
    with ControlClient(home.run) as control:
        how = control.ask("take-over", name=args.service)
        signal_me_when_my_parent_dies(signal.SIGTERM)
        print(f"running {args.service} here; Ctrl-C gives it back", file=sys.stderr)
        process = start_by_hand(how)
        control.ask("run-by-hand", name=args.service, pid=process.pid)
        return status_by_hand(process)


def start_by_hand(how: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    """Start a service as the platform said; Ctrl-C and SIGTERM reach it as SIGTERM from here on.

    The terminal's own Ctrl-C does not reach it, in a group of its own: Python would answer that
    with a traceback until the service has come so far as to listen to signals, and again when it
    is about to end, while SIGTERM ends it at any time.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(
        tethered(how["argv"]),
        cwd=how["cwd"],
        env={**inherited_environment(), **how["env"]},
        process_group=0,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: process.terminate())
    return process


def status_by_hand(process: subprocess.Popen[bytes]) -> int:
    """Wait until it has ended; being told to, however early, is no failure."""
    status = process.wait()
    return 0 if status == -signal.SIGTERM else status


def execute(args: argparse.Namespace, home: Home) -> int:
    """Run a command against a platform of its own, which ends with the command."""
    if home.is_running():
        print(
            f"a platform is running in {home.root} already: stop it, or give another --home",
            file=sys.stderr,
        )
        return FAILED
    signal_me_when_my_parent_dies(signal.SIGTERM)
    signal.signal(signal.SIGTERM, _interrupt)
    daemon = launcher.spawn(home, settings_of(args, follow_stdin=True))
    code = FAILED
    try:
        launcher.wait_until_ready(home, daemon, show)
        env = {**os.environ, "BUSBAR_HOME": str(home.root), "BUSBAR_CACHE": str(home.cache)}
        code = subprocess.call(args.argv, env=env)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except OSError as problem:
        print(refused(problem, home), file=sys.stderr)
    stopped = stop_shown(home, daemon)
    return code or stopped


def install_triton(args: argparse.Namespace, _home: Home) -> int:
    from busbar_runtime.triton import ensure_triton  # noqa: PLC0415 - only this command needs it

    ensure_triton(args.cache, progress=lambda line: print(line, flush=True))
    return 0


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="./just", description="Run the Busbar platform on this machine."
    )
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, action: Any, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.add_argument(
            "--home", type=Path, help="state directory (default: BUSBAR_HOME or .busbar)"
        )
        made.add_argument(
            "--cache", type=Path, help="shared downloads (default: BUSBAR_CACHE or .busbar/cache)"
        )
        made.set_defaults(action=action, parser=made)
        return made

    def starts(made: argparse.ArgumentParser) -> None:
        made.add_argument(
            "--only",
            action="append",
            metavar="PART",
            help="this part and what it needs; repeatable",
        )
        made.add_argument(
            "--port", action="append", metavar="NAME=NUMBER", help="a listener's port; repeatable"
        )

        made.add_argument(
            "--sites",
            type=int,
            default=0,
            metavar="N",
            help="N sites in two regions, each with a NATS, a node agent and a Triton of its own "
            f"(at most {SITES_MAX}; default: one node on one NATS)",
        )
        made.add_argument(
            "--hub-servers",
            type=int,
            default=1,
            choices=HUB_SERVERS,
            help="with --sites: how many NATS servers each region has; of 3 one may be lost",
        )

    starting = command("up", up, "Start the platform and leave it running.")
    starts(starting)
    starting.add_argument(
        "--foreground", action="store_true", help="stay attached; Ctrl-C stops everything"
    )
    command("down", down, "Stop the platform and wait until all of it is gone.")
    command("status", status, "Show addresses and processes.")
    reading = command("logs", logs, "Show the log of a service, or of the console.")
    reading.add_argument("service", help=f"{', '.join(SERVICES)}, nats, postgres, console, …")
    reading.add_argument("-f", "--follow", action="store_true", help="go on showing what is added")
    reading.add_argument(
        "-n", "--lines", type=int, default=LOG_LINES, help=f"how many lines (default {LOG_LINES})"
    )
    command("run", run, "Run one service here instead of the platform's own.").add_argument(
        "service", choices=SERVICES
    )
    executing = command("exec", execute, "Start a platform, run a command against it, stop it.")
    starts(executing)
    executing.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    command("install-triton", install_triton, "Put Triton into the cache.")
    return root


def main(argv: Sequence[str] | None = None) -> int:
    args, unknown = parser().parse_known_args(argv)
    if unknown:  # told by the command's own parser, whose usage says what would be right
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    home = Home.of(args.home, args.cache)
    args.cache = home.cache
    if getattr(args, "argv", None):
        args.argv = args.argv[1:] if args.argv[0] == "--" else args.argv
    try:
        return args.action(args, home)
    except PlatformNotRunningError as problem:
        print(f"{problem}: start it with ./just up", file=sys.stderr)
        return NOT_RUNNING
    except (ControlError, launcher.LaunchFailedError) as problem:
        print(str(problem).partition(":\n")[0], file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # nobody reads any further, and nothing is left to tell them
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as problem:
        print(refused(problem, home), file=sys.stderr)
        return FAILED


def refused(problem: OSError, home: Home) -> str:
    """What the system refused, in one line; where that is in a directory of ours, what to do."""
    said = f"{problem.strerror or problem}"
    if not isinstance(problem.filename, str | bytes):
        return said
    path = Path(os.fsdecode(problem.filename))
    said += f": {path}"
    if path.is_relative_to(home.root):
        said += f"; {home.root} is the state directory: --home or BUSBAR_HOME names another"
    elif path.is_relative_to(home.cache):
        said += f"; {home.cache} is the cache: --cache or BUSBAR_CACHE names another"
    return said


if __name__ == "__main__":
    sys.exit(main())
