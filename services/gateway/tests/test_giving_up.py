"""Who stops to wait for a turn, before it came or after, keeps nobody else from one."""

from __future__ import annotations

import pytest
from busbar_gateway.domain.admission import Ticket
from busbar_gateway.domain.failures import RateLimited
from busbar_gateway.domain.policies import UNLIMITED
from busbar_gateway.domain.routes import Caller, Manifest, Route, Target
from busbar_gateway.usecases.admitting import Admissions
from busbar_gateway.usecases.calls import InferenceCall

SLOTS = 1
ROUTE = Route("m", Manifest("m", "1", "tensor", "c", SLOTS), 0, (Target("r1", SLOTS),))


def call(tenant: str) -> InferenceCall:
    return InferenceCall(b"", Caller(tenant, "key"), ROUTE, b"", "api", 0, 1e12)


@pytest.fixture
def admissions() -> Admissions:
    return Admissions(
        queue_max=2,
        unready_grace_s=1,
        remembered_ready_s=1,
        current_route=lambda _: ROUTE,
        region="r1",
        others=lambda _: [],
        policy=lambda _: UNLIMITED,
    )


def filled(admissions: Admissions) -> tuple[Ticket, Ticket]:
    """Take all slots; the last request that has one, and the first that waits."""
    last, waiting = (admissions.enter(call("t")) for _ in range(2))
    while waiting.turn is None:
        last, waiting = waiting, admissions.enter(call("t"))
    return last, waiting


async def test_a_turn_that_came_to_nobody_goes_to_the_next(admissions: Admissions) -> None:
    last, first = filled(admissions)
    second = admissions.enter(call("t"))
    admissions.leave("m", last, 1.0)
    assert first.turn.done()
    assert not second.turn.done()

    admissions.give_up("m", first)

    assert second.turn.done()


async def test_who_gave_up_waiting_is_passed_over_also_when_displaced(
    admissions: Admissions,
) -> None:
    last, first = filled(admissions)
    displaced = admissions.enter(call("t"))
    other = admissions.enter(call("u"))
    with pytest.raises(RateLimited):
        await displaced.turn

    admissions.give_up("m", displaced)
    admissions.give_up("m", first)
    admissions.leave("m", last, 1.0)

    assert other.turn.done()
    lane = admissions.lane("m")
    assert lane is not None
    assert lane.waiting == 0
