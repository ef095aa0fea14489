"""How facts read on the operator's console."""

from __future__ import annotations

import pytest
from busbar_contracts.scheduler.v1.deployment_pb2 import RolloutPhase
from busbar_contracts.scheduler.v1.events_pb2 import RolloutMoved
from busbar_telemetry.adapters.event_decoding import read_fact
from busbar_telemetry.domain.events import Event

SUBJECT = "busbar.evt.scheduler.v1.rollout_moved"
DIGEST = "sha256:0123456789abcdef"


@pytest.mark.parametrize(
    ("phase", "percent", "rolled_back", "text", "severity"),
    [
        (RolloutPhase.ROLLOUT_PHASE_OBSERVING, 10, False, "takes 10 % of the requests", "info"),
        (RolloutPhase.ROLLOUT_PHASE_TAKING_OVER, 50, False, "gets as many slots as", "info"),
        (RolloutPhase.ROLLOUT_PHASE_SETTLING, 100, False, "takes all requests, and", "info"),
        (RolloutPhase.ROLLOUT_PHASE_LEAVING, 0, False, "is on trial no longer", "info"),
        (RolloutPhase.ROLLOUT_PHASE_LEAVING, 0, True, "rolled back", "warning"),
        (RolloutPhase.ROLLOUT_PHASE_UNSPECIFIED, 50, False, "takes 50 % of the", "info"),
    ],
    ids=["observing", "taking over", "settling", "promoted", "given up", "of an older release"],
)
def test_each_step_of_a_rollout_reads_as_what_it_is(
    phase: RolloutPhase.ValueType, percent: int, text: str, severity: str, *, rolled_back: bool
) -> None:
    moved = RolloutMoved(
        deployment="chat",
        bundle_digest=DIGEST,
        percent=percent,
        rolled_back=rolled_back,
        reason="why",
        phase=phase,
    )
    event = read_fact(SUBJECT, moved.SerializeToString(), 1, 2)

    assert isinstance(event, Event)
    assert (event.subject, event.severity) == ("chat", severity)
    assert event.text.startswith(f"version 0123456789ab {text}")
    assert event.text.endswith(": why")
