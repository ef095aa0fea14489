"""Plans of small random fleets beside the best there is."""

from __future__ import annotations

from busbar_scheduler.domain.planning import plan
from optimum import optimum, worth_nanos
from small_fleets import held_by, small_fleet

FLEETS = 100
WITHIN, OFTEN = 0.03, 0.95


def test_small_fleets_are_planned_nearly_as_well_as_can_be() -> None:
    gaps, unkept = list[float](), list[int]()
    for seed in range(FLEETS):
        snapshot = small_fleet(seed)
        best = optimum(snapshot)
        if best is None:
            continue
        made = plan(snapshot)
        if any(made.short.values()):
            unkept.append(seed)
            continue
        worth = worth_nanos(snapshot, held_by(made))
        gaps.append((best.worth_nanos - worth) / max(1, abs(best.worth_nanos)))

    assert unkept == []
    assert len(gaps) > FLEETS / 2
    assert sum(gap <= WITHIN for gap in gaps) >= OFTEN * len(gaps)
