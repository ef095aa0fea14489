"""The trace store stays in its bounds and keeps what matters longer."""

from __future__ import annotations

from collections.abc import Mapping

from busbar_telemetry.domain.request_ids import canonical
from busbar_telemetry.domain.requests import requests_of
from busbar_telemetry.domain.traces import FactValue, Span, TraceLimits, TraceQuery, TraceStore
from busbar_telemetry.usecases.list_requests import recent_requests, request_named
from hypothesis import given
from hypothesis import strategies as st

S = 1_000_000_000


def span(
    trace: int,
    number: int = 1,
    *,
    parent: int = 0,
    service: str = "gateway",
    start_ns: int = 0,
    took_ns: int = 1_000,
    error: bool = False,
    facts: Mapping[str, FactValue] | None = None,
    body_bytes: int = 100,
) -> Span:
    return Span(
        trace_id=f"{trace:032x}",
        span_id=f"{number:016x}",
        parent_id=f"{parent:016x}" if parent else "",
        service=service,
        name=f"op{number}",
        start_ns=start_ns,
        end_ns=start_ns + took_ns,
        error=error,
        facts=facts or {},
        body=b"x" * body_bytes,
    )


def held(store: TraceStore) -> set[int]:
    return {int(trace.trace_id, 16) for trace in store.find(TraceQuery(limit=10_000))}


def test_the_oldest_trace_makes_room() -> None:
    store = TraceStore(TraceLimits(traces=3))
    store.add(span(n, facts={"busbar.request_id": f"req_{n:032x}"}) for n in range(1, 6))

    assert held(store) == {3, 4, 5}
    assert store.evicted_count == 2
    assert store.of_request(f"req_{1:032x}") is None
    assert store.of_request(f"req_{5:032x}") is not None
    assert store.request_count == 3


def test_failed_and_slow_traces_outlive_ordinary_ones_within_their_share() -> None:
    store = TraceStore(TraceLimits(traces=10, slow_ns=5 * S, kept_share=0.5))
    store.add([span(1, error=True), span(2, took_ns=6 * S)])
    store.add(span(n) for n in range(100, 150))

    assert {1, 2} < held(store)
    assert len(store) == 10
    store.add(span(n, error=True) for n in range(200, 250))
    assert 1 not in held(store)
    assert {249, 149} < held(store)
    assert sum(n >= 200 for n in held(store)) == 5


def test_a_late_span_joins_its_trace() -> None:
    store = TraceStore(TraceLimits())
    store.add([span(1, 2, parent=1, service="node-agent", start_ns=5)])
    store.add([span(1, 1, start_ns=0, took_ns=50)])
    store.add(
        [span(1, 3, parent=2, service="billing", start_ns=900, facts={"busbar.cost_nanos": 7})]
    )

    trace = store.get(f"{1:032x}")
    assert trace is not None
    assert trace.root.span_id == f"{1:016x}"
    assert trace.duration_ns == 50
    assert trace.services == {"gateway", "node-agent", "billing"}
    [request] = requests_of(trace)
    assert (request.cost_nanos, request.duration_ns, request.span_count) == (7, 50, 3)


def test_a_span_sent_again_counts_once() -> None:
    store = TraceStore(TraceLimits())
    store.add([span(1), span(1), span(1, 2)])

    trace = store.get(f"{1:032x}")
    assert trace is not None
    assert len(trace.spans) == 2
    assert store.size_bytes == trace.size_bytes


def test_one_trace_cannot_take_everything() -> None:
    store = TraceStore(TraceLimits(spans_per_trace=10, bytes=80_000))
    store.add(span(1, n) for n in range(1, 50))
    store.add(span(2, n, body_bytes=5_000) for n in range(1, 50))

    counts = {trace.trace_id[-1]: len(trace.spans) for trace in store.find(TraceQuery())}
    assert counts == {"1": 10, "2": 1}
    assert store.dropped_span_count == 39 + 48


@given(
    st.lists(
        st.builds(
            span,
            st.integers(1, 12),
            st.integers(1, 6),
            error=st.booleans(),
            took_ns=st.sampled_from([1_000, 6 * S]),
            body_bytes=st.integers(0, 3_000),
            facts=st.sampled_from([{}, {"busbar.request_id": "a"}, {"busbar.request_id": "b"}]),
        ),
        max_size=120,
    )
)
def test_whatever_arrives_the_bounds_hold_and_the_accounts_agree(spans: list[Span]) -> None:
    limits = TraceLimits(traces=5, bytes=64_000, spans_per_trace=4)
    store = TraceStore(limits)
    for arrived in spans:
        store.add([arrived])

        assert len(store) <= limits.traces
        assert store.size_bytes <= limits.bytes
    traces = store.find(TraceQuery(limit=100))
    assert store.size_bytes == sum(trace.size_bytes for trace in traces)
    assert all(0 < len(trace.spans) <= limits.spans_per_trace for trace in traces)
    for request_id in ("a", "b"):
        found = store.of_request(request_id)
        assert found is None or found in traces
    assert store.request_count <= 2


def test_listing_is_latest_first_and_filtered() -> None:
    store = TraceStore(TraceLimits())
    store.add([span(1, start_ns=3 * S, facts={"busbar.deployment": "embed"})])
    store.add([span(2, start_ns=9 * S, error=True, facts={"busbar.deployment": "chat"})])
    store.add([span(3, start_ns=6 * S, service="triton", facts={"busbar.tenant": "t"})])

    def listed(query: TraceQuery) -> list[int]:
        return [int(trace.trace_id, 16) for trace in store.find(query)]

    assert listed(TraceQuery()) == [2, 3, 1]
    assert listed(TraceQuery(limit=1)) == [2]
    assert listed(TraceQuery(deployment="embed")) == [1]
    assert listed(TraceQuery(service="triton")) == [3]
    assert listed(TraceQuery(tenant="t")) == [3]
    assert listed(TraceQuery(errors_only=True)) == [2]
    assert store.services() == ["gateway", "triton"]


def test_request_ids_are_found_in_every_usual_form() -> None:
    digits = "0197f3c2a1b27cde8f00112233445566"

    dashed = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
    for form in (digits, f"req_{digits}", digits.upper(), f" {dashed} "):
        assert canonical(form) == f"req_{digits}"
    assert canonical("something else") == "something else"


def facts_of(name: str, deployment: str) -> dict[str, FactValue]:
    return {"busbar.request_id": name, "busbar.deployment": deployment}


def test_requests_that_share_a_customers_trace_are_listed_each() -> None:
    store = TraceStore(TraceLimits())
    store.add(
        [
            span(1, 1, parent=99, start_ns=10, took_ns=5, facts=facts_of("a", "embed")),
            span(1, 2, parent=1, service="triton", error=True),
            span(1, 3, parent=99, start_ns=20, took_ns=7, facts=facts_of("b", "chat")),
            span(1, 4, parent=3, service="billing", facts={"busbar.cost_nanos": 3}),
        ]
    )

    later, earlier = recent_requests(store, TraceQuery())
    assert (earlier.request_id, earlier.deployment, earlier.duration_ns) == ("a", "embed", 5)
    assert (earlier.error, earlier.cost_nanos, earlier.services) == (
        True,
        None,
        ["gateway", "triton"],
    )
    assert (later.request_id, later.error, later.cost_nanos) == ("b", False, 3)
    assert [r.request_id for r in recent_requests(store, TraceQuery(deployment="chat"))] == ["b"]
    assert [r.request_id for r in recent_requests(store, TraceQuery(errors_only=True))] == ["a"]
    named = request_named(store, "b")
    assert named is not None
    assert named.operation == "op3"
    assert request_named(store, "c") is None


def test_spans_that_are_each_others_parents_are_one_request() -> None:
    store = TraceStore(TraceLimits())
    store.add([span(1, 1, parent=2), span(1, 2, parent=1)])

    assert [request.span_count for request in recent_requests(store, TraceQuery())] == [2]
