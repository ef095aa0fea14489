"""A trace as a tree with bars to scale."""

from __future__ import annotations

from typing import Any

import pytest
from busbar_cli.waterfall import bar, draw, lines_of
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console


def span(name: str, start: int, duration: int, parent: str = "", **tags: Any) -> dict[str, Any]:
    return {
        "spanID": name,
        "operationName": name,
        "references": [{"refType": "CHILD_OF", "spanID": parent}] if parent else [],
        "startTime": start,
        "duration": duration,
        "tags": [{"key": key, "value": value} for key, value in tags.items()],
        "processID": "p1",
    }


def trace(*spans: dict[str, Any]) -> dict[str, Any]:
    return {"traceID": "t", "spans": list(spans), "processes": {"p1": {"serviceName": "gateway"}}}


def test_spans_stand_under_their_parents_in_order_of_time() -> None:
    lines = lines_of(
        trace(
            span("late", 30, 5, "root"),
            span("root", 0, 100),
            span("leaf", 12, 1, "early"),
            span("early", 10, 5, "root", error=True),
            span("orphan", 50, 5, "never-arrived"),
        )
    )

    assert [(line.depth, line.name) for line in lines] == [
        (0, "root"),
        (1, "early"),
        (2, "leaf"),
        (1, "late"),
        (0, "orphan"),
    ]
    assert [line.name for line in lines if line.failed] == ["early"]


def test_spans_that_name_each_other_as_parents_end() -> None:
    assert lines_of(trace(span("a", 0, 1, "b"), span("b", 0, 1, "a"))) == []


@pytest.mark.parametrize(
    ("offset", "duration", "drawn"),
    [(0, 100, "█" * 10), (0, 0, "█"), (50, 10, "     █"), (100, 5, "         █")],
)
def test_bars_are_to_scale(offset: int, duration: int, drawn: str) -> None:
    assert bar(offset, duration, 100, cells=10) == drawn


@given(st.integers(-10, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_bar_is_seen_and_stays_in_its_frame(offset: int, duration: int, whole: int) -> None:
    drawn = bar(offset, duration, whole, cells=20)

    assert 1 <= len(drawn) <= 20
    assert drawn.endswith("█")


def test_an_empty_trace_can_be_drawn() -> None:
    console = Console(record=True, width=100)
    console.print(draw(trace()))

    assert "SPAN" in console.export_text()
