"""Facts of the EVENTS stream in words for the operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from busbar_contracts.billing.v1.events_pb2 import (
    ApiKeyCreated,
    ApiKeyRevoked,
    AuditBreached,
    TenantCreated,
    UsagePosted,
)
from busbar_contracts.node.v1.events_pb2 import ReplicaBecameReady, ReplicaFailed, TritonLost
from busbar_contracts.scheduler.v1.deployment_pb2 import RolloutPhase
from busbar_contracts.scheduler.v1.events_pb2 import (
    LeaderElected,
    PlanPublished,
    RolloutMoved,
)
from busbar_messaging.dispositions import decode
from google.protobuf.message import Message

from busbar_telemetry.domain.events import Charges, Event, Severity

_REASONS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class _Wording:
    """How one kind of fact reads. `subject` is what it is about: a node, a tenant."""

    message_type: type[Message]
    severity: Severity
    """What it usually is."""
    subject: Callable[[Any], str]
    text: Callable[[Any], str]
    warns: Callable[[Any], bool] = lambda _: False
    """Whether this one is a warning."""


def _plan_text(plan: PlanPublished) -> str:
    counts = {"placement": plan.nodes_changed, "route": plan.routes_changed}
    said = [f"{n} {what}{'s' if n > 1 else ''}" for what, n in counts.items() if n]
    changed = f"{' and '.join(said) or 'nothing'} changed"
    more = len(plan.reasons) - _REASONS_SHOWN
    reasons = list(plan.reasons[:_REASONS_SHOWN]) + ([f"and {more} more"] if more > 0 else [])
    return changed + (f": {'; '.join(reasons)}" if reasons else "")


_PHASES = {
    RolloutPhase.ROLLOUT_PHASE_TAKING_OVER: "gets as many slots as the version that serves",
    RolloutPhase.ROLLOUT_PHASE_SETTLING: "takes all requests, and the replicas change to it",
    RolloutPhase.ROLLOUT_PHASE_LEAVING: "is on trial no longer",
}


def _rollout_text(moved: RolloutMoved) -> str:
    digest = moved.bundle_digest.removeprefix("sha256:")[:12]
    share = f"takes {moved.percent} % of the requests"
    step = "rolled back" if moved.rolled_back else _PHASES.get(moved.phase, share)
    return f"version {digest} {step}: {moved.reason}"


def _triton_text(lost: TritonLost) -> str:
    handed_back = f", {lost.handed_back} requests handed back" if lost.handed_back else ""
    return f"Triton lost: {lost.reason}{handed_back}"


_WORDINGS = {
    "tritonlost": _Wording(TritonLost, "error", lambda m: m.node, _triton_text),
    "replicabecameready": _Wording(
        ReplicaBecameReady,
        "info",
        lambda m: m.node,
        lambda m: f"{m.deployment} ready after {m.took_ms / 1000:.1f} s",
    ),
    "replicafailed": _Wording(
        ReplicaFailed, "error", lambda m: m.node, lambda m: f"{m.deployment} failed: {m.reason}"
    ),
    "leaderelected": _Wording(
        LeaderElected,
        "info",
        lambda m: m.scheduler_id,
        lambda m: f"leads the scheduling, fencing token {m.fencing_token}",
    ),
    "rolloutmoved": _Wording(
        RolloutMoved, "info", lambda m: m.deployment, _rollout_text, lambda m: m.rolled_back
    ),
    "planpublished": _Wording(PlanPublished, "info", lambda _: "", _plan_text),
    "tenantcreated": _Wording(
        TenantCreated, "info", lambda m: m.tenant_id, lambda m: f"tenant {m.name} created"
    ),
    "apikeycreated": _Wording(
        ApiKeyCreated, "info", lambda m: m.tenant_id, lambda m: f"key {m.key_id} created"
    ),
    "auditbreached": _Wording(
        AuditBreached,
        "error",
        lambda m: m.subject,
        lambda m: f"the books are not right ({m.check}): {m.subject} {m.detail}",
    ),
    "apikeyrevoked": _Wording(
        ApiKeyRevoked, "warning", lambda m: m.tenant_id, lambda m: f"key {m.key_id} revoked"
    ),
}


def read_fact(subject: str, data: bytes, sequence: int, at_unix_ms: int) -> Event | Charges:
    """A message of the EVENTS stream; raises Rejected when it is not what its subject says.

    A fact that this release does not know is shown by its name.
    """
    service, fact = _names(subject)
    plain = fact.replace("_", "").replace("-", "")
    if plain == "usageposted":
        return _charges(decode(UsagePosted, data))
    wording = _WORDINGS.get(plain)
    if wording is None:
        return Event(sequence, at_unix_ms, service, fact, "info", "", fact.replace("_", " "))
    message = decode(wording.message_type, data)
    return Event(
        sequence=sequence,
        at_unix_ms=at_unix_ms,
        service=service,
        fact=fact,
        severity="warning" if wording.warns(message) else wording.severity,
        subject=wording.subject(message),
        text=wording.text(message)[:500],
    )


def _names(subject: str) -> tuple[str, str]:
    """The service and the fact; subjects end in <service>.v1.<fact>."""
    service, _, fact = subject.split(".")[-3:]
    return service, fact


def _charges(posted: UsagePosted) -> Charges:
    amounts: dict[str, int] = {}
    for charge in posted.charges:
        amounts[charge.currency] = amounts.get(charge.currency, 0) + charge.amount_nanos
    return Charges(len(posted.charges), amounts)
