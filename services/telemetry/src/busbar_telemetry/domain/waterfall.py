"""A trace laid out as a waterfall: who called whom, when, and for how long."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from busbar_telemetry.domain.traces import Span


@dataclass(frozen=True, slots=True)
class Bar:
    """One span in the picture; offset and width are fractions of the whole, 0 to 1."""

    span: Span
    depth: int
    offset: float
    width: float


@dataclass(frozen=True, slots=True)
class Waterfall:
    """Bars from top to bottom, parents before children, siblings by start."""

    start_ns: int
    duration_ns: int
    bars: list[Bar]
    services: list[str]


def lay_out(spans: Iterable[Span]) -> Waterfall:
    """Order and scale `spans`; every span appears exactly once, even orphans and cycles.

    Clocks of different machines differ, so a child may stick out of its parent:
    it is drawn as reported.
    """
    by_start = sorted(spans, key=lambda span: (span.start_ns, -span.end_ns, span.span_id))
    if not by_start:
        return Waterfall(0, 0, [], [])
    start_ns = by_start[0].start_ns
    end_ns = max(max(span.start_ns, span.end_ns) for span in by_start)
    total_ns = max(1, end_ns - start_ns)
    bars = [
        Bar(
            span=span,
            depth=depth,
            offset=(span.start_ns - start_ns) / total_ns,
            width=max(0, span.end_ns - span.start_ns) / total_ns,
        )
        for span, depth in _depth_first(by_start)
    ]
    services = list(dict.fromkeys(bar.span.service for bar in bars))
    return Waterfall(start_ns, end_ns - start_ns, bars, services)


def _depth_first(by_start: list[Span]) -> list[tuple[Span, int]]:
    known = {span.span_id for span in by_start}
    children: defaultdict[str, list[Span]] = defaultdict(list)
    roots: list[Span] = []
    for span in by_start:
        is_root = span.parent_id not in known or span.parent_id == span.span_id
        (roots if is_root else children[span.parent_id]).append(span)
    ordered: list[tuple[Span, int]] = []
    seen: set[str] = set()
    # Spans that are each other's parents hang under no root: they come last, as roots of their own.
    for root in [*roots, *by_start]:
        stack = [(root, 0)]
        while stack:
            span, depth = stack.pop()
            if span.span_id in seen:
                continue
            seen.add(span.span_id)
            ordered.append((span, depth))
            stack.extend((child, depth + 1) for child in reversed(children[span.span_id]))
    return ordered
