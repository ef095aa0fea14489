"""One trace as a tree with bars to scale, from Jaeger's JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from busbar_cli.api import Json
from busbar_cli.output import show_duration

_BAR_CELLS = 40
_COLORS = ("cyan", "magenta", "green", "yellow", "blue", "bright_red")
_DEPTH_MAX = 64


@dataclass(frozen=True, slots=True)
class Line:
    """One span, where it stands in the tree."""

    depth: int
    service: str
    name: str
    start_us: int
    duration_us: int
    failed: bool


def lines_of(trace: Json) -> list[Line]:
    """The spans in the order of the tree; a span whose parent is missing is a root."""
    spans: Mapping[str, Json] = {one["spanID"]: one for one in trace["spans"]}
    children: dict[str, list[Json]] = {}
    for span in sorted(spans.values(), key=lambda one: one["startTime"]):
        children.setdefault(_parent(span, spans), []).append(span)
    services = {key: one["serviceName"] for key, one in trace["processes"].items()}
    return list(_walk("", 0, children, services))


def _parent(span: Json, spans: Mapping[str, Json]) -> str:
    for reference in span.get("references", []):
        if reference["refType"] == "CHILD_OF" and reference["spanID"] in spans:
            return str(reference["spanID"])
    return ""


def _walk(
    parent: str, depth: int, children: Mapping[str, list[Json]], services: Mapping[str, str]
) -> Iterator[Line]:
    for span in children.get(parent, []) if depth < _DEPTH_MAX else []:
        yield Line(
            depth=depth,
            service=services.get(span["processID"], "?"),
            name=span["operationName"],
            start_us=span["startTime"],
            duration_us=span["duration"],
            failed=any(tag["key"] == "error" and tag["value"] is True for tag in span["tags"]),
        )
        yield from _walk(span["spanID"], depth + 1, children, services)


def draw(trace: Json) -> Table:
    """The waterfall."""
    lines = lines_of(trace)
    start = min((line.start_us for line in lines), default=0)
    end = max((line.start_us + line.duration_us for line in lines), default=start)
    services = sorted({line.service for line in lines})
    colors = {name: _COLORS[at % len(_COLORS)] for at, name in enumerate(services)}
    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column("SERVICE")
    made.add_column("SPAN", overflow="fold")
    made.add_column(f"0 … {show_duration(end - start)}", width=_BAR_CELLS, no_wrap=True)
    made.add_column("TOOK", justify="right", no_wrap=True)
    for line in lines:
        color = colors[line.service]
        made.add_row(
            Text(line.service, style=color),
            Text("  " * line.depth + line.name, style="red" if line.failed else ""),
            Text(bar(line.start_us - start, line.duration_us, end - start), style=color),
            show_duration(line.duration_us),
        )
    return made


def bar(offset_us: int, duration_us: int, whole_us: int, cells: int = _BAR_CELLS) -> str:
    """A bar to scale, at least one cell wide and never outside the frame."""
    whole_us = max(whole_us, 1)
    first = min(cells - 1, max(0, round(cells * offset_us / whole_us)))
    width = min(cells - first, max(1, round(cells * duration_us / whole_us)))
    return " " * first + "█" * width
