"""Requests of deployments that have a second version: where they go, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from busbar_contracts.node.v1.work_pb2 import FailureKind, WorkFinished, WorkFrame

from busbar_gateway.domain.routes import Canary, Route
from busbar_gateway.domain.versions import Outcomes, Trial, named, version_for
from busbar_gateway.usecases.calls import InferenceCall
from busbar_gateway.usecases.pending import Lost, Pending

_FAULTS = frozenset(
    {
        FailureKind.FAILURE_KIND_INTERNAL,
        FailureKind.FAILURE_KIND_UNAVAILABLE,
        FailureKind.FAILURE_KIND_DEADLINE_EXCEEDED,
        FailureKind.FAILURE_KIND_TOO_LARGE,
    }
)
"""Held against whichever version they come from. What is merely lost is the node's doing."""


@dataclass(slots=True)
class Trials:
    """Assigns versions and counts what comes of it, while a deployment has two."""

    readable: Callable[[bytes], bool]
    """Whether an answer, or the first part of one, is one."""
    current_route: Callable[[str], Route | None]
    _outcomes: dict[str, dict[str, Outcomes]] = field(
        default_factory=dict[str, dict[str, Outcomes]]
    )

    def assign(self, pending: Pending, route: Route) -> Canary | None:
        """Decide which version has the next attempt; the canary, or None."""
        trial, begun = pending.trial, pending.attempts.current > 0
        if trial is None:
            trial = pending.trial = Trial()
        track = trial.canary.track if trial.canary else ""
        canary = version_for(
            route,
            pending.call.request_id,
            staying_with=track if begun else None,
            shunned=trial.shuns,
        )
        trial.canary = canary
        trial.digest = canary.digest if canary else route.digest
        pending.call.canary = canary.digest if canary else ""
        return canary

    def begins(self, pending: Pending) -> bool:
        """Count the first part of an answer; False for one that is none."""
        trial = pending.trial
        if trial is None or trial.canary is None or pending.attempts.delivering:
            return True
        return self._is_read(pending, trial, pending.chunks[0].payload)

    def other_serves(self, pending: Pending) -> bool:
        """Whether the version that serves takes what the canary could not answer."""
        route = self.current_route(pending.call.route.deployment)
        return route is not None and route.stable_slots > 0

    def accepts(self, pending: Pending, finished: WorkFinished) -> bool:
        """Count an answer and give it the deployment's name; False for one that is none."""
        trial, deployment = pending.trial, pending.call.route.deployment
        if trial is None:
            return True
        if trial.canary is not None:
            if not pending.streamed and not self._is_read(pending, trial, finished.payload):
                return False
            finished.payload = named(finished.payload, deployment) if finished.payload else b""
        elif trial.doubted:
            self._of(deployment, trial.doubted).failed += 1
            trial.doubted = ""
        usage = finished.usage
        outcomes = self._of(deployment, trial.digest)
        outcomes.answer(finished.timings.compute_us, usage.output_tokens)
        return True

    def spares(self, pending: Pending, outcome: WorkFrame | Lost) -> bool:
        """Count a failure; whether the customer is spared it, since the other version may do it."""
        trial, deployment = pending.trial, pending.call.route.deployment
        if trial is None:
            return False
        kind = outcome.failed.kind if isinstance(outcome, WorkFrame) else None
        told_to_leave = isinstance(outcome, WorkFrame) and outcome.failed.told_to_leave
        if kind in _FAULTS and not told_to_leave:
            self._of(deployment, trial.digest).failed += 1
        if trial.canary is None:
            return False
        if kind == FailureKind.FAILURE_KIND_ENGINE_LOST:  # it may take the other one's along
            self._of(deployment, trial.digest).failed += 1
        trial.shuns = True
        if pending.attempts.delivering or kind == FailureKind.FAILURE_KIND_DEADLINE_EXCEEDED:
            return False
        if not self.other_serves(pending):
            return False
        if kind == FailureKind.FAILURE_KIND_REJECTED:
            trial.doubted = trial.digest
        return True

    def garbled(self, call: InferenceCall) -> None:
        """What the canary answered could not be read after all."""
        self._of(call.route.deployment, call.canary).failed += 1

    def keep_to_routes(self) -> None:
        """Forget deployments that do not have two versions any more."""
        for deployment in list(self._outcomes):
            route = self.current_route(deployment)
            if route is None or route.canary is None:
                del self._outcomes[deployment]

    def of(self, deployment: str) -> Iterator[tuple[str, Outcomes]]:
        """Digest and outcomes of each version."""
        yield from sorted(self._outcomes.get(deployment, {}).items())

    def _is_read(self, pending: Pending, trial: Trial, payload: bytes) -> bool:
        if self.readable(payload):
            return True
        self._of(pending.call.route.deployment, trial.digest).failed += 1
        trial.shuns = True
        return False

    def _of(self, deployment: str, digest: str) -> Outcomes:
        return self._outcomes.setdefault(deployment, {}).setdefault(digest, Outcomes())


def stranded(pending: Pending, route: Route | None) -> bool:
    """Whether a request waits for a canary that takes no work any more."""
    trial = pending.trial
    if trial is None or trial.canary is None or pending.outcome is not None:
        return False
    if pending.attempts.last_sign or not pending.attempts.current:
        return False
    canary = route.canary if route else None
    return canary is None or not canary.takes_work or canary.track != trial.canary.track
