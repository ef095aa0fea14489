"""What was usually asked outlives the scheduler that saw it."""

from __future__ import annotations

import pytest
from busbar_contracts.scheduler.v1.demand_pb2 import DemandHistory
from busbar_errors import Rejected
from busbar_messaging import topology
from busbar_scheduler.adapters.demand_memory import history_message, history_of
from busbar_scheduler.domain.autoscaling import Autoscaler, Remembered
from busbar_scheduler.domain.forecasting import History
from busbar_scheduler.domain.scaling import Scale
from harness.polling import eventually
from scheduler_harness import Bus, scheduling

HOURS = 8 * 60


def spiky(minute: int) -> float:
    return 9.0 if minute % 60 < 5 else 1.0


def learned() -> History:
    history = History()
    for minute in range(HOURS):
        history.learn(minute, spiky(minute))
    return history


def test_a_history_reads_back_and_foresees_the_same() -> None:
    before = Remembered(learned(), 12.5)
    read = DemandHistory.FromString(history_message("m", before).SerializeToString())
    after = history_of(read)
    assert before.history.forecast(HOURS - 2, 3) == pytest.approx(9, rel=0.1)

    for minute in range(HOURS, HOURS + 90):
        assert after.history.forecast(minute - 2, 3) == before.history.forecast(minute - 2, 3)
        before.history.learn(minute, spiky(minute))
        after.history.learn(minute, spiky(minute))
    assert after.loading_s == 12.5


@pytest.mark.parametrize("field", ["loads", "seen"])
def test_a_history_of_another_shape_is_refused(field: str) -> None:
    message = history_message("m", Remembered(learned()))
    season = message.seasons[0]
    if field == "loads":
        season.loads.pop()
    else:
        season.seen = b""

    with pytest.raises(Rejected, match="in 60 min"):
        history_of(message)


def test_what_others_saw_for_longer_is_taken_over_and_nothing_else() -> None:
    autoscaler = Autoscaler(scales={"m": Scale(1), "n": Scale(1, history=learned())})
    autoscaler.scales["n"].measured_loading_s = 3.0
    known = autoscaler.scales["n"].history
    autoscaler.recall("m", Remembered(learned(), 4.0))
    autoscaler.recall("n", Remembered(History(), 9.0))

    assert autoscaler.scales["m"].history.forecast(HOURS - 2, 3) is not None
    assert autoscaler.scales["m"].measured_loading_s == 4.0
    assert autoscaler.scales["n"].history is known
    assert autoscaler.scales["n"].measured_loading_s == 3.0


async def test_the_next_scheduler_knows_what_the_last_one_saw(bus: Bus) -> None:
    async with scheduling(bus) as running:
        scheduler = running.scheduler
        scheduler.view.autoscaler.scales["gone"] = Scale(0, history=learned())
        await scheduler.demand_memory.note()
        bucket = await running.client.jetstream().key_value(topology.DEMAND.name)
        await bucket.put("broken", b"\xff")

    async with scheduling(bus, name="s2") as running:
        autoscaler = running.scheduler.view.autoscaler

        async def recalled() -> Remembered | None:
            return autoscaler.remembered.get("gone")

        known = await eventually(recalled, within_s=30, what="the history")

    assert known is not None
    assert known.history.forecast(HOURS - 2, 3) == learned().forecast(HOURS - 2, 3)
    assert "broken" not in autoscaler.remembered
