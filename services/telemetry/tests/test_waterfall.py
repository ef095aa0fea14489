"""The picture of a trace."""

from __future__ import annotations

import pytest
from busbar_telemetry.domain.traces import Span
from busbar_telemetry.domain.waterfall import lay_out
from hypothesis import given
from hypothesis import strategies as st


def span(number: int, parent: int, start_ns: int, took_ns: int, service: str = "gateway") -> Span:
    parent_id = f"{parent:016x}" if parent else ""
    return Span(
        "a" * 32, f"{number:016x}", parent_id, service, f"op{number}", start_ns, start_ns + took_ns,
        False, {}, b"",
    )  # fmt: skip


def test_parents_come_before_children_and_bars_are_to_scale() -> None:
    picture = lay_out(
        [
            span(4, 3, 60, 20, "triton"),
            span(1, 0, 0, 100),
            span(3, 1, 50, 40, "node-agent"),
            span(2, 1, 10, 20),
        ]
    )

    shown = [(int(bar.span.span_id, 16), bar.depth) for bar in picture.bars]
    assert shown == [(1, 0), (2, 1), (3, 1), (4, 2)]
    assert picture.duration_ns == 100
    assert picture.bars[3].offset == pytest.approx(0.6)
    assert picture.bars[3].width == pytest.approx(0.2)
    assert picture.services == ["gateway", "node-agent", "triton"]


def test_nothing_is_lost_when_parents_are_missing_or_circular() -> None:
    picture = lay_out([span(1, 2, 0, 1), span(2, 1, 1, 1), span(3, 99, 2, 1), span(4, 4, 3, 1)])

    assert sorted(int(bar.span.span_id, 16) for bar in picture.bars) == [1, 2, 3, 4]


def test_an_empty_trace_is_an_empty_picture() -> None:
    assert lay_out([]).bars == []


spans = st.builds(
    span, st.integers(1, 30), st.integers(0, 30), st.integers(0, 1000), st.integers(-50, 1000)
)


@given(st.lists(spans, unique_by=lambda made: made.span_id, max_size=30))
def test_every_span_is_drawn_once_inside_the_picture(made: list[Span]) -> None:
    picture = lay_out(made)

    assert sorted(bar.span.span_id for bar in picture.bars) == sorted(s.span_id for s in made)
    for bar in picture.bars:
        assert 0 <= bar.offset <= 1
        assert bar.offset + bar.width <= 1 + 1e-9
