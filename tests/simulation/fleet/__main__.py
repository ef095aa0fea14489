"""`./just simulate`: one day under Busbar's scheduler and two simpler ways, side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from multiprocessing import Manager
from pathlib import Path
from queue import Queue

from rich.console import Console
from rich.progress import Progress, TaskID, TimeElapsedColumn

from simulation.fleet import report
from simulation.fleet.day import SHORT, SMALL, Day, draw, whole
from simulation.fleet.promises import Breach
from simulation.fleet.run import POLICIES, Run

_POLL_S = 0.2
_DAY_H = 24.0
_DOCUMENT = Path("docs/simulation.md")
_BEGIN, _END = "<!-- simulated -->", "<!-- /simulated -->"


def main(argv: Sequence[str] | None = None) -> int:
    """Play the day; 1 when a promise was broken."""
    args = arguments(argv)
    console = Console(width=190, soft_wrap=True)
    day, again = day_of(args), again_of(args)
    what = (
        f"{len(day.sites)} sites, {len(day.boxes):,} nodes, {len(day.deployments)} models, "
        f"{len(day.tenants)} tenants, {day.lasts_s / 3_600:g} h, seed {args.seed}"
    )
    console.print(what)
    results = _play(day, args.policies, args.jobs, console)
    if results:
        console.print(report.table(results))
        made = Path(args.out)
        report.draw(day, results, made)
        console.print(f"{results[0].checks:,} checks of promises; picture: {made.resolve()}")
    if results and args.write:
        _write(day, results, f"`{again}`: {what}.")
    broken = len(results) < len(args.policies)
    if broken:
        console.print(f"to see it again: {again}")
    return int(broken)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command was told."""
    parser = argparse.ArgumentParser(prog="./just simulate", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the day; the same seed, the same day")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--sites", type=int, default=40, help="with fifty nodes each")
    parser.add_argument(
        "--requests-per-s", type=float, default=10.0, help="on the average of the day"
    )
    parser.add_argument(
        "--size",
        choices=("whole", "short", "small"),
        default="whole",
        help="short and small are the days of the tests",
    )
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--jobs", type=int, default=2, help="days at a time")
    parser.add_argument(
        "--sun-hours", type=float, default=24.0, help="how long a day takes; less compresses it"
    )
    parser.add_argument("--write", action="store_true", help="write docs/simulation.md and .svg")
    parser.add_argument("--out", default=".busbar/simulation.html")
    return parser.parse_args(argv)


def day_of(args: argparse.Namespace) -> Day:
    """The day that is asked for."""
    sizes = {"whole": whole(args.sites, args.hours, args.requests_per_s, args.sun_hours)}
    return draw(args.seed, (sizes | {"short": SHORT, "small": SMALL})[args.size])


def again_of(args: argparse.Namespace) -> str:
    """The command that plays the same day again."""
    command = f"./just simulate --seed {args.seed}"
    if args.size != "whole":
        return f"{command} --size {args.size}"
    sun = "" if args.sun_hours == _DAY_H else f" --sun-hours {_plain(args.sun_hours)}"
    return (
        f"{command} --hours {_plain(args.hours)} --sites {args.sites} "
        f"--requests-per-s {_plain(args.requests_per_s)}{sun}"
    )


def _plain(number: float) -> str:
    return str(number).removesuffix(".0")


def _write(day: Day, results: list[report.Result], how: str) -> None:
    """Put the table between its marks, and the picture beside it."""
    before, _, rest = _DOCUMENT.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    happened = ", ".join(f"{count} {name}" for name, count in sorted(results[0].troubles.items()))
    checked = f"{results[0].checks:,} checks of promises, none broken. Troubles: {happened}."
    lines = [_BEGIN, how, "", *report.written(results), "", checked, _END]
    _DOCUMENT.write_text(before + "\n".join(lines) + after)
    report.draw(day, results, _DOCUMENT.with_suffix(".svg"))


def _play(day: Day, policies: list[str], jobs: int, console: Console) -> list[report.Result]:
    """Each policy in a process of its own; those that broke no promise."""
    with (
        Manager() as shared,
        Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console) as bar,
        ProcessPoolExecutor(jobs) as pool,
    ):
        done: Queue[tuple[str, float]] = shared.Queue()
        tasks = {name: bar.add_task(name, total=1.0) for name in policies}
        running = [pool.submit(_one, day, name, done) for name in policies]
        _follow(running, lambda: _show(bar, tasks, done))
        return [found for one in running if (found := _result(one, console)) is not None]


def _follow(running: list[Future[report.Result]], show: Callable[[], None]) -> None:
    pending = set(running)
    while pending:
        _, pending = wait(pending, timeout=_POLL_S)
        show()


def _show(bar: Progress, tasks: dict[str, TaskID], done: Queue[tuple[str, float]]) -> None:
    while not done.empty():
        name, part = done.get()
        bar.update(tasks[name], completed=part)


def _result(one: Future[report.Result], console: Console) -> report.Result | None:
    try:
        return one.result()
    except Breach as breach:
        console.print(f"BREACH {breach}", style="bold red")
        return None


def _one(day: Day, policy: str, done: Queue[tuple[str, float]]) -> report.Result:
    run = Run(day, policy)
    run.play(lambda part: done.put((policy, part)))
    return report.result_of(run)


if __name__ == "__main__":
    sys.exit(main())
