"""Fixtures of the HTTP edge's tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from busbar_gateway.adapters.http.limits import HttpLimits
from busbar_observability.logs import configure_logging
from http_harness import LIMITS, RunningEdge, poll, running
from stand_ins import KEY


@pytest.fixture(scope="session")
def session_edge() -> Iterator[RunningEdge]:
    configure_logging("gateway")
    with running(LIMITS) as edge:
        yield edge


@pytest.fixture
def edge(session_edge: RunningEdge) -> RunningEdge:
    session_edge.serving.failure = session_edge.serving.settle_failure = None
    session_edge.not_ready.clear()
    return session_edge


@pytest.fixture
def edge_with() -> Iterator[Callable[..., RunningEdge]]:
    """Start an edge with other limits."""
    with contextlib.ExitStack() as stack:
        yield lambda **limits: stack.enter_context(running(replace(LIMITS, **limits)))


@pytest.fixture
def ready_edge() -> Iterator[RunningEdge]:
    """An edge whose models are all ready, with the limits of production."""
    with running(HttpLimits(), frozenset({"simple", "embedder", "chatty"})) as edge:
        yield edge


@pytest.fixture
def until() -> Callable[..., None]:
    return poll


@pytest.fixture
def key() -> str:
    return KEY
