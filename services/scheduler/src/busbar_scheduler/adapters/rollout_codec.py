"""Between the bus's messages and the domain's values: rollouts, and where versions are reached."""

from __future__ import annotations

from collections.abc import Iterable

from busbar_contracts.scheduler.v1.deployment_pb2 import RolledBack as RolledBackMessage
from busbar_contracts.scheduler.v1.deployment_pb2 import Rollout as RolloutMessage
from busbar_contracts.scheduler.v1.deployment_pb2 import RolloutPhase
from busbar_contracts.scheduler.v1.plan_pb2 import CanaryRoute as CanaryRouteMessage
from busbar_contracts.scheduler.v1.plan_pb2 import RouteTarget
from busbar_errors import Rejected

from busbar_scheduler.domain.fleet import CanaryRoute, Target
from busbar_scheduler.domain.rollouts import (
    TRACK_SUFFIX,
    Phase,
    RolledBack,
    Rollout,
    is_track,
)

PHASES = {
    Phase.OBSERVING: RolloutPhase.ROLLOUT_PHASE_OBSERVING,
    Phase.TAKING_OVER: RolloutPhase.ROLLOUT_PHASE_TAKING_OVER,
    Phase.SETTLING: RolloutPhase.ROLLOUT_PHASE_SETTLING,
    Phase.LEAVING: RolloutPhase.ROLLOUT_PHASE_LEAVING,
}
_PHASES_BACK = {message: phase for phase, message in PHASES.items()}


def metadata_of(deployment: str, metadata: bytes) -> bytes:
    """A serialized ModelMetadataResponse, that of a version on trial under its deployment's name.

    Of serialized messages that follow one another the last value of a field counts, and messages in
    them are merged: protobuf.dev, "Last One Wins".
    """
    if not metadata or not is_track(deployment):
        return metadata
    return metadata + _first_field(deployment.removesuffix(TRACK_SUFFIX).encode())


def config_of(deployment: str, config: bytes) -> bytes:
    """The same for a ModelConfigResponse, whose first field is a message with a name first."""
    if not config or not is_track(deployment):
        return config
    return config + _first_field(_first_field(deployment.removesuffix(TRACK_SUFFIX).encode()))


def _first_field(value: bytes) -> bytes:
    """Field 1 with a length; deployments' names are short enough for a length of one byte."""
    return bytes([0x0A, len(value)]) + value


def phase_of(message: RolloutPhase.ValueType) -> Phase:
    """The phase in a message; raises Rejected when it is unknown."""
    phase = _PHASES_BACK.get(message)
    if phase is None:
        raise Rejected(f"a rollout is in no known phase: {message}")
    return phase


def terms_message(terms: Rollout | None) -> RolloutMessage | None:
    """The terms of a rollout as the bus carries them."""
    if terms is None:
        return None
    return RolloutMessage(
        canary_percent=terms.canary_percent,
        observe_s=terms.observe_s,
        max_error_ratio=terms.max_error_ratio,
        max_latency_ratio=terms.max_latency_ratio,
        min_samples=terms.min_samples,
        ready_within_s=terms.ready_within_s,
    )


def terms_of(message: RolloutMessage) -> Rollout:
    """The terms in a message."""
    return Rollout(
        canary_percent=message.canary_percent,
        observe_s=message.observe_s,
        max_error_ratio=message.max_error_ratio,
        max_latency_ratio=message.max_latency_ratio,
        min_samples=message.min_samples,
        ready_within_s=message.ready_within_s,
    )


def rolled_back_message(given_up: RolledBack | None) -> RolledBackMessage | None:
    """A version that was given up, as the bus carries it."""
    if given_up is None:
        return None
    return RolledBackMessage(
        bundle_digest=given_up.digest, reason=given_up.reason, at_unix_ms=given_up.at_unix_ms
    )


def rolled_back_of(message: RolledBackMessage) -> RolledBack:
    """The version that was given up, in a message."""
    return RolledBack(message.bundle_digest, message.reason, message.at_unix_ms)


def target_messages(targets: Iterable[Target]) -> list[RouteTarget]:
    """Ready capacity by region as the bus carries it."""
    return [
        RouteTarget(
            region=one.region, ready_slots=one.ready_slots, ready_replicas=one.ready_replicas
        )
        for one in targets
    ]


def targets_of(messages: Iterable[RouteTarget]) -> tuple[Target, ...]:
    """Ready capacity by region, in messages."""
    return tuple(Target(one.region, one.ready_slots, one.ready_replicas) for one in messages)


def route_message(canary: CanaryRoute | None) -> CanaryRouteMessage | None:
    """How a version on trial is reached, as the bus carries it."""
    if canary is None:
        return None
    return CanaryRouteMessage(
        track=canary.track,
        bundle_digest=canary.digest,
        percent=canary.percent,
        targets=target_messages(canary.targets),
    )


def route_of(message: CanaryRouteMessage) -> CanaryRoute:
    """How a version on trial is reached, in a message."""
    targets = targets_of(message.targets)
    return CanaryRoute(message.track, message.bundle_digest, message.percent, targets)
