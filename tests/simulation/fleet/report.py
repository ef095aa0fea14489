"""What a day came to, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from rich.table import Table

from simulation.fleet.day import Day, Trouble
from simulation.fleet.measures import BUCKETS, Part, percentile
from simulation.fleet.run import Run
from simulation.fleet.work import Outcome

_COLOURS = ("#0969da", "#bc4c00", "#8250df")
_LEFT, _WIDTH, _TOP, _HEIGHT = 60.0, 890.0, 10.0, 150.0
_SHOWN = {Trouble.OUTAGE, Trouble.MAINTENANCE, Trouble.CURTAILMENT}
_DOLLAR = 1e9


@dataclass(frozen=True, slots=True)
class Result:
    """One day under one policy, in numbers that can be sent between processes."""

    policy: str
    arrived: int
    served: int
    refused: int
    failed: int
    queue_p50_s: float
    queue_p99_s: float
    utilisation: float
    moves: int
    loads: int
    gap: float
    bound: float
    kwh: float
    energy_nanos: int
    spares_missing: int
    """Plans that left a promise of N+1 unkept."""
    checks: int
    events: int
    parts: tuple[Part, ...]
    troubles: dict[Trouble, int]
    resumed: int
    tried_again: int


def result_of(run: Run) -> Result:
    """The numbers of a day that was played."""
    measures, outcomes = run.measures, run.measures.outcomes
    gap, bound = run.fairness()
    slots = sum(part.slots for part in measures.parts)
    return Result(
        run.policy_name,
        run.promises.arrived,
        outcomes[Outcome.SERVED],
        sum(count for outcome, count in outcomes.items() if outcome.refused),
        sum(
            count
            for outcome, count in outcomes.items()
            if outcome is not Outcome.SERVED and not outcome.refused
        ),
        percentile(measures.queue_s, 50),
        percentile(measures.queue_s, 99),
        sum(part.busy for part in measures.parts) / max(1, slots),
        measures.moves,
        measures.loads,
        gap,
        bound,
        run.energy_kwh,
        run.energy_nanos,
        run.promises.broken["N+1"],
        run.promises.checks.total(),
        run.events,
        tuple(measures.parts),
        dict(run.troubles.happened),
        measures.resumed,
        measures.tried_again,
    )


_COLUMNS: dict[str, Callable[[Result], str]] = {
    "policy": lambda one: one.policy,
    "requests": lambda one: f"{one.arrived:,}",
    "served": lambda one: f"{one.served / max(1, one.arrived):.2%}",
    "refused": lambda one: f"{one.refused:,}",
    "failed": lambda one: f"{one.failed:,}",
    "queue p50": lambda one: f"{one.queue_p50_s:.2f} s",
    "p99": lambda one: f"{one.queue_p99_s:.1f} s",
    "slots busy": lambda one: f"{one.utilisation:.0%}",
    "loads": lambda one: f"{one.loads:,}",
    "moves": lambda one: f"{one.moves:,}",
    "gap of VTC's bound": lambda one: f"{one.gap / one.bound:.0%}" if one.bound else "-",
    "energy": lambda one: f"{one.kwh:,.1f} kWh",
    "for 1,000 served": lambda one: f"${_per_thousand(one):.4f}",
    "plans without N+1": lambda one: f"{one.spares_missing:,}",
}


def _per_thousand(one: Result) -> float:
    return one.energy_nanos / _DOLLAR / max(1, one.served) * 1_000


def table(results: Sequence[Result]) -> Table:
    """A line for each policy."""
    made = Table(box=None, title_justify="left")
    for column in _COLUMNS:
        made.add_column(column, justify="left" if column == "policy" else "right", no_wrap=True)
    for one in results:
        made.add_row(*(cell(one) for cell in _COLUMNS.values()))
    return made


def written(results: Sequence[Result]) -> list[str]:
    """The table as a document has it."""
    rows = [[cell(one) for cell in _COLUMNS.values()] for one in results]
    lines = [list(_COLUMNS), ["---"] * len(_COLUMNS), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


# --- the picture -----------------------------------------------------------------------------


def _unserved(part: Part) -> float:
    ended = part.served + part.refused + part.failed
    return 100 * (part.refused + part.failed) / max(1, ended)


_CHARTS: tuple[tuple[str, Callable[[Part], float], str], ...] = (
    ("Requests that were not served, of those that ended", _unserved, "%"),
    ("Longest wait for a turn, s", lambda part: part.queued_s, ""),
    ("Slots that are ready", lambda part: part.slots / max(1, part.samples), ""),
    ("Slots that are busy, of those ready", lambda part: 100 * part.busy / max(1, part.slots), "%"),
    ("Power for inference, kW", lambda part: part.draw_w / max(1, part.samples) / 1_000, ""),
)


def draw(day: Day, results: Sequence[Result], path: Path) -> None:
    """Write the picture: a page, or what a document can show when it is to be an SVG."""
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    first, hours = results[0], day.lasts_s / 3_600
    template = "picture.svg.j2" if path.suffix == ".svg" else "page.html.j2"
    page = templates.get_template(template).render(
        seed=day.seed,
        sites=len(day.sites),
        nodes=f"{len(day.boxes):,}",
        hours=f"{hours:g}",
        troubles=", ".join(f"{count} {name}" for name, count in sorted(first.troubles.items())),
        colours=_COLOURS,
        names=[one.policy for one in results],
        head=list(_COLUMNS),
        rows=[[cell(one) for cell in _COLUMNS.values()] for one in results],
        faults=list(_shades(day)),
        hours_at=[(_x(at / 6), f"{hours * at / 6:.3g} h") for at in range(7)],
        charts=[_chart(results, *chart) for chart in _CHARTS],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)


def _chart(
    results: Sequence[Result], title: str, value: Callable[[Part], float], unit: str
) -> dict[str, object]:
    series = [[value(part) for part in one.parts] for one in results]
    most = max(max(values) for values in series) or 1.0
    return {
        "title": title,
        "ticks": [(_y(part / 4), f"{most * part / 4:.3g}{unit}") for part in range(5)],
        "lines": [
            " ".join(
                f"{_x((at + 0.5) / BUCKETS):.1f},{_y(one / most):.1f}"
                for at, one in enumerate(values)
            )
            for values in series
        ],
    }


def _shades(day: Day) -> list[tuple[str, str]]:
    return [
        (
            f"{_x(fault.at_s / day.lasts_s):.1f}",
            f"{max(0.5, (fault.notice_s + fault.lasts_s) / day.lasts_s * _WIDTH):.1f}",
        )
        for fault in day.faults
        if fault.trouble in _SHOWN
    ]


def _x(part: float) -> float:
    return _LEFT + part * _WIDTH


def _y(part: float) -> float:
    return round(_TOP + _HEIGHT * (1 - part), 1)
