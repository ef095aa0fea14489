"""Which version of a deployment takes a request, and how much both take together."""

from __future__ import annotations

import math
from uuid import UUID

import pytest
from busbar_gateway.domain.routes import Canary, Manifest, Route, Target
from busbar_gateway.domain.versions import Outcomes, is_drawn, named, version_for
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

REQUEST = UUID(int=7).bytes
MANIFEST = Manifest("m", "1", "tensor", "p")


def route(stable_slots: int, canary_slots: int, percent: int) -> Route:
    canary = Canary("m--canary", "sha256:2", percent, (Target("r1", canary_slots),))
    return Route("m", MANIFEST, 0, (Target("r1", stable_slots),), canary=canary)


@given(st.binary(min_size=16, max_size=16), st.integers(0, 100), st.integers(0, 100))
def test_a_larger_share_keeps_whom_a_smaller_one_had(
    request_id: bytes, percent: int, more: int
) -> None:
    low, high = sorted((percent, more))

    assert not is_drawn(request_id, low) or is_drawn(request_id, high)
    assert is_drawn(request_id, 100)
    assert not is_drawn(request_id, 0)


@pytest.mark.parametrize("percent", [1, 10, 50])
def test_the_share_is_what_was_asked_for(percent: int) -> None:
    ids = [UUID(int=number * 977).bytes for number in range(20_000)]

    drawn = sum(is_drawn(one, percent) for one in ids) / len(ids)

    assert drawn == pytest.approx(percent / 100, abs=0.01)


def test_a_request_stays_with_its_version_while_that_takes_work() -> None:
    both = route(4, 4, 50)
    stays = version_for(both, REQUEST, staying_with="m--canary")
    remains = version_for(route(4, 4, 99), REQUEST, staying_with="")

    assert stays == both.canary
    assert remains is None


@pytest.mark.parametrize(("stable_slots", "takes"), [(4, False), (0, True)])
def test_a_canary_that_failed_a_request_gets_it_again_only_where_nothing_else_serves(
    stable_slots: int, takes: bool
) -> None:
    chosen = version_for(route(stable_slots, 4, 100), REQUEST, staying_with="", shunned=True)

    assert (chosen is not None) is takes


@pytest.mark.parametrize(
    ("stable_slots", "canary_slots", "percent", "takes"),
    [(4, 0, 100, False), (4, 4, 0, False), (4, 4, 100, True), (0, 1, 1, True)],
)
def test_a_version_without_slots_or_share_takes_nothing(
    stable_slots: int, canary_slots: int, percent: int, takes: bool
) -> None:
    chosen = version_for(route(stable_slots, canary_slots, percent), REQUEST, staying_with=None)

    assert (chosen is not None) is takes


@given(st.integers(0, 64), st.integers(0, 64), st.integers(0, 100))
def test_neither_version_gets_more_than_its_slots(
    stable_slots: int, canary_slots: int, percent: int
) -> None:
    together = route(stable_slots, canary_slots, percent).ready_slots

    takes = percent if canary_slots and stable_slots else 100 * bool(canary_slots and percent)
    assert together * takes // 100 <= canary_slots or not takes
    assert together * (100 - takes) // 100 <= stable_slots
    if canary_slots * 100 >= percent * stable_slots:  # as the scheduler sees to
        assert together >= stable_slots


def test_a_message_is_read_under_its_new_name() -> None:
    request = service_pb2.ModelInferRequest(model_name="m", id="7")
    request.inputs.add(name="IN", datatype="FP32", shape=[4])

    found = service_pb2.ModelInferRequest.FromString(
        named(request.SerializeToString(), "m--canary")
    )

    request.model_name = "m--canary"
    assert found == request


def test_latency_is_counted_for_each_token() -> None:
    short, long, plain = Outcomes(), Outcomes(), Outcomes()
    short.answer(1_000, 10)
    long.answer(100_000, 1_000)
    plain.answer(100, 0)

    assert short == long == plain == Outcomes(1, 0, 1, math.log(100), math.log(100) ** 2)
