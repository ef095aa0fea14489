"""`./just bench`: the gateway against a direct Triton, same model, same run.

Rounds are interleaved, so that a machine whose speed drifts treats all targets
alike; the table shows medians over the rounds. Writes docs/benchmarks.md.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import admission
import answers
import peer
import processes
import reserving
import shots
from load import LoadFailed, Measured, Shot, drive
from psutil import Process
from report import REPORT, machine, parser, put_table
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

PARTS = (
    "gateway", "nats", "node-agent", "triton", "billing", "postgres", "scheduler", "telemetry",
)  # fmt: skip
IN_FLIGHT = (1, 32)
PEER = "peer"
FLOOR_AT_32 = 0.30
PEER_FLOOR_AT_32 = 1.5
"""0.45 of direct where such a peer reaches 0.30, as the design's price list has it."""
IDLE_RSS_MIB_MAX, IDLE_CPU_PERCENT_MAX = 500, 3
_IDLE_SECONDS = 10
_WIDTH_OF_A_FILE = 200


@dataclass
class Cell:
    """One target under one load, and what its rounds showed."""

    protocol: str
    target: str
    in_flight: int
    shot: Callable[[], Shot]
    answered: Callable[[], float]
    """How many requests the target has answered well since it started."""
    model: str = shots.MODEL
    pids: dict[str, int] = field(default_factory=dict[str, int])
    """Processes that stand in for the platform's parts of that name."""
    rounds: list[Measured] = field(default_factory=list[Measured])
    cpu_us: list[dict[str, float]] = field(default_factory=list[dict[str, float]])

    @property
    def requests_per_s(self) -> float:
        return statistics.median(m.requests_per_s for m in self.rounds)

    @property
    def p50_ms(self) -> float:
        return statistics.median(m.p50_ms for m in self.rounds)

    @property
    def p99_ms(self) -> float:
        return statistics.median(m.p99_ms for m in self.rounds)

    def cpu(self, part: str) -> float:
        """Median CPU microseconds per request of one part."""
        return statistics.median(round_.get(part, 0.0) for round_ in self.cpu_us)


def cells(endpoints: dict[str, Any]) -> list[Cell]:
    """Every combination of protocol, target and load, and the batched model under the largest."""
    triton = processes.triton_process(endpoints["pids"]["node-agent"])
    direct_grpc = f"127.0.0.1:{processes.option(triton, 'grpc-port')}"
    direct_http = f"http://127.0.0.1:{processes.option(triton, 'http-port')}"
    at_triton = f"127.0.0.1:{processes.option(triton, 'metrics-port')}"
    key = {"authorization": f"Bearer {endpoints['keys']['demo']}"}
    traced = {**key, **shots.sampled_header(os.getpid() << 64 | time.time_ns())}
    made: list[Cell] = []
    headers_to = {"direct": {}, "gateway": key, "gateway, traced": traced}
    loads = [(shots.MODEL, in_flight, target) for in_flight in IN_FLIGHT for target in headers_to]
    loads += [(shots.BATCHED_MODEL, max(IN_FLIGHT), target) for target in ("direct", "gateway")]
    for model, in_flight, target in loads:
        headers = headers_to[target]
        answered = partial(answers.by_gateway, endpoints["ops"]["gateway"], model)
        if target == "direct":
            answered = partial(answers.by_triton, at_triton, model)
        grpc_at = direct_grpc if target == "direct" else endpoints["grpc"]
        http_at = direct_http if target == "direct" else endpoints["http"]
        by_grpc = partial(shots.grpc_shot, grpc_at, headers, model)
        by_http = partial(shots.http_shot, http_at, headers, model)
        made.append(Cell("gRPC", target, in_flight, by_grpc, answered, model))
        made.append(Cell("HTTP", target, in_flight, by_http, answered, model))
    return made


def peer_cells(address: str, pids: dict[str, int], triton: Process) -> list[Cell]:
    """The peer, which speaks gRPC alone, under each load."""
    at_triton = f"127.0.0.1:{processes.option(triton, 'metrics-port')}"
    by_grpc = partial(shots.grpc_shot, address, {})
    answered = partial(answers.by_triton, at_triton, shots.MODEL)
    stands_in = {**pids, "triton": triton.pid}
    return [Cell("gRPC", PEER, n, by_grpc, answered, pids=stands_in) for n in IN_FLIGHT]


def measure(cell: Cell, pids: dict[str, int], seconds: int) -> None:
    """One round of one cell; raises LoadFailed when answers were no good ones."""
    watched = {**pids, **cell.pids}
    answered, before = cell.answered(), processes.usage(watched)
    measured = drive(cell.shot(), cell.in_flight, seconds)
    spent = processes.usage(watched).cpu_since(before)
    good = cell.answered() - answered
    if good < measured.requests:
        raise LoadFailed(f"{cell.target}: only {good:.0f} of {measured.requests} answers are good")
    cell.rounds.append(measured)
    cell.cpu_us.append({name: s * 1e6 / measured.requests for name, s in spent.items()})


def take_turns(measured: list[Cell], pids: dict[str, int], rounds: int, seconds: int) -> None:
    """Warm each cell up for a second, then measure it once a round."""
    for cell in measured:
        drive(cell.shot(), cell.in_flight, 1)
    with Progress() as progress:
        task = progress.add_task("measuring", total=rounds * len(measured))
        for _ in range(rounds):
            for cell in measured:
                measure(cell, pids, seconds)
                progress.advance(task)


def idle(pids: dict[str, int]) -> tuple[float, float]:
    """RSS in MiB and CPU in percent of one core of the five services, doing nothing."""
    services = {name: pid for name, pid in pids.items() if name in processes.SERVICES}
    before, started = processes.usage(services), time.monotonic()
    time.sleep(_IDLE_SECONDS)
    after, elapsed = processes.usage(services), time.monotonic() - started
    spent = after.cpu_since(before)
    cpu_s = sum(seconds for name, seconds in spent.items() if name in processes.SERVICES)
    rss = sum(mib for name, mib in after.rss_mib.items() if name in processes.SERVICES)
    return rss, 100 * cpu_s / elapsed


def rows(measured: list[Cell]) -> list[list[str]]:
    """The table's rows: ratios are against `direct` of the same protocol, load and model, and
    against the peer under the same load."""
    direct = {(c.model, c.protocol, c.in_flight): c for c in measured if c.target == "direct"}
    stock = {(c.model, c.in_flight): c for c in measured if c.target == PEER}
    made: list[list[str]] = []
    for cell in measured:
        reference = direct[(cell.model, cell.protocol, cell.in_flight)]
        beside = stock.get((cell.model, cell.in_flight))
        made.append(
            [
                cell.protocol,
                str(cell.in_flight),
                cell.target + (", batched" if cell.model == shots.BATCHED_MODEL else ""),
                f"{cell.requests_per_s:,.0f}",
                f"{cell.p50_ms:.2f}",
                f"{cell.p99_ms:.2f}",
                f"{cell.requests_per_s / reference.requests_per_s:.2f}",
                f"{cell.p50_ms / reference.p50_ms:.1f}",
                f"{cell.requests_per_s / beside.requests_per_s:.2f}" if beside else "",
                *[f"{cell.cpu(part):.0f}" for part in PARTS],
            ]
        )
    return made


HEAD = (
    *("API", "in flight", "target", "req/s", "p50 ms", "p99 ms", "req/s ÷ direct", "p50 ÷ direct"),
    "req/s ÷ peer",
    *[f"{part} µs" for part in PARTS],
)

STEPS_HEAD = ("step", "CPU µs", "limit µs")


def write_report(table: list[list[str]], idle_line: str, how: str) -> None:
    """Write the first part of docs/benchmarks.md; the sections after it are others'."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `./just bench`. The limit is the same load generator straight at the same Triton,",
        "same model (`echo-fp32`: 16 floats in, 16 out), same run. Charging, admission and the",
        "awaited PubAck are on. `traced` asks for every request to be sampled; `batched` is the",
        "same model with dynamic batching (`echo-fp32-batched`), whose requests the agent merges.",
        "`peer` is a stock grpc.aio gateway and agent on the same NATS and Triton, without keys,",
        "admission or charging (`tests/benchmarks/peer.py`). The µs columns are CPU time per",
        "request of each part, model processes included in `triton`.",
        "",
        how,
        "",
        "| " + " | ".join(HEAD) + " |",
        "|" + "---|" * len(HEAD),
        *["| " + " | ".join(row) + " |" for row in table],
        "",
        idle_line,
        "",
    ]
    REPORT.write_text("\n".join(lines) + sections_after(REPORT.read_text()))


def sections_after(report: str) -> str:
    """What stands in a report from its first section on, a blank line before it."""
    _, found, rest = report.partition("\n## ")
    return found + rest


def _console() -> Console:
    """As wide as the terminal; where there is none, as wide as the table."""
    return Console() if sys.stdout.isatty() else Console(width=_WIDTH_OF_A_FILE)


def show(table: list[list[str]], idle_line: str, how: str) -> None:
    """Print the same table to the terminal."""
    console, shown = _console(), Table(title=how)
    for title in HEAD:
        shown.add_column(title, justify="right")
    for row in table:
        shown.add_row(*row)
    console.print(shown)
    console.print(idle_line)


def main() -> int:
    """Run it all; exit 1 when a floor or a limit is missed, 2 when it cannot run."""
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=int, default=4, help="length of one round of one cell")
    options = arguments.parse_args()
    endpoints = json.loads(Path(os.environ["BUSBAR_HOME"], "endpoints.json").read_text())
    pids = endpoints["pids"]
    rss, cpu = idle(pids)
    idle_line = f"Idle: the five services together {rss:.0f} MiB RSS, {cpu:.1f} % of one core."
    measured = cells(endpoints)
    triton = processes.triton_process(pids["node-agent"])
    with peer.running(endpoints, f"127.0.0.1:{processes.option(triton, 'grpc-port')}") as stock:
        measured += peer_cells(stock.address, stock.pids, triton)
        measured.sort(key=lambda cell: (cell.model, cell.protocol, cell.in_flight))
        take_turns(measured, pids, options.rounds, options.seconds)
    how = f"Medians of {options.rounds} interleaved rounds of {options.seconds} s, on {machine()}."
    table = rows(measured)
    show(table, idle_line, how)
    if not options.no_report:
        write_report(table, idle_line, how)
    steps = [*admission.report(), *reserving.report()]
    publish_steps(steps, written=not options.no_report)
    return max(verdict(measured), idle_verdict(rss, cpu), within_limits(steps))


def publish_steps(steps: list[dict[str, Any]], *, written: bool) -> None:
    """What fairness, limits and money cost the gateway."""
    how = (
        "`tests/benchmarks/reserving.py` and `admission.py`, part of `./just bench`: CPU that a "
        f"request costs the gateway, {reserving.TENANTS:,} tenants known and {reserving.ACTIVE} "
        f"active, renewing their leases in it, on {machine()}."
    )
    rows = [
        [step["step"], f"{step['cpu_us']:.1f}", f"{step['limit_us']:.0f}" if _limited(step) else ""]
        for step in steps
    ]
    put_table("Limits, credit and admission", how, STEPS_HEAD, rows, written=written)


def within_limits(steps: list[dict[str, Any]]) -> int:
    """0 when no step costs more than it may."""
    over = [step["step"] for step in steps if _limited(step) and step["cpu_us"] > step["limit_us"]]
    for step in over:
        sys.stderr.write(f"{step}: more than its limit\n")
    return int(bool(over))


def _limited(step: dict[str, Any]) -> bool:
    return "limit_us" in step


def verdict(measured: list[Cell]) -> int:
    """0 when the gateway reaches its floors at 32 in flight on both APIs."""
    loaded = [c for c in measured if c.in_flight == max(IN_FLIGHT) and c.model == shots.MODEL]
    per_s = {(c.protocol, c.target): c.requests_per_s for c in loaded}
    missed = 0
    for protocol in ("gRPC", "HTTP"):
        gateway = per_s[(protocol, "gateway")]
        for of, there, floor in (
            ("direct", per_s[(protocol, "direct")], FLOOR_AT_32),
            ("the peer", per_s[("gRPC", PEER)], PEER_FLOOR_AT_32),
        ):
            if gateway / there < floor:
                sys.stderr.write(f"{protocol}: {gateway / there:.2f} of {of} is below {floor}\n")
                missed = 1
    return missed


def idle_verdict(rss_mib: float, cpu_percent: float) -> int:
    """0 when the five services together need no more than they may, doing nothing."""
    missed = 0
    for unit, measured, most in (
        ("MiB RSS", rss_mib, IDLE_RSS_MIB_MAX),
        ("% of one core", cpu_percent, IDLE_CPU_PERCENT_MAX),
    ):
        if measured >= most:
            sys.stderr.write(f"idle: {measured:.1f} {unit} is not under {most}\n")
            missed = 1
    return missed


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LoadFailed as error:
        sys.stderr.write(f"bench: {error}\n")
        sys.exit(2)
