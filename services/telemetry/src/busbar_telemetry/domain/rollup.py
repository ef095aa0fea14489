"""From tables to the fleet view: plain functions of the reports and the time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import fields, replace
from itertools import chain

from busbar_telemetry.domain.fleet import (
    LOST_AFTER_S,
    SUSPECT_AFTER_S,
    Fleet,
    GatewayRecord,
    NodeRecord,
)
from busbar_telemetry.domain.fleet_view import (
    CapacityView,
    DeploymentView,
    GatewayView,
    NodeView,
    RegionView,
    ReplicaView,
    SiteView,
    Totals,
)
from busbar_telemetry.domain.rates import CounterWindow, Rates
from busbar_telemetry.domain.reports import DeploymentReport, NodeReport, RouteReport

HEARD_STATES = frozenset({"ok", "waiting", "draining"})


def node_views(fleet: Fleet, now_s: float) -> list[NodeView]:
    """Every node, in the order of its name."""
    return [
        _node_view(key, record, fleet.placements.get(key) or frozenset(), now_s)
        for key, record in fleet.nodes.items()
    ]


def region_views(nodes: Iterable[NodeView]) -> list[RegionView]:
    """Nodes under their sites under their regions, each with its totals."""
    tree: defaultdict[str, defaultdict[str, list[NodeView]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for node in nodes:
        tree[node.region][node.site].append(node)
    return [
        RegionView(
            region=region,
            totals=totals(chain.from_iterable(sites.values())),
            sites=[
                SiteView(site, totals(found), [node.node for node in found])
                for site, found in sorted(sites.items())
            ],
        )
        for region, sites in sorted(tree.items())
    ]


def totals(nodes: Iterable[NodeView]) -> Totals:
    """Sums over `nodes`; capacity and load only of those that are heard of."""
    sums: defaultdict[str, int] = defaultdict(int)
    for node in nodes:
        sums["nodes"] += 1
        sums[f"nodes_{node.state}"] += 1
        if node.state not in HEARD_STATES:
            continue
        sums["slots"] += node.slots
        sums["ready_slots"] += node.ready_slots
        sums["in_flight"] += node.in_flight
        sums["memory_mib"] += node.memory_mib
        sums["gpus"] += len(node.gpus)
    return Totals(**{field.name: sums[field.name] for field in fields(Totals)})


def liveness(heard_ago_s: float) -> str:
    """ "ok", "suspect" or "lost", from the age of the last sign of life."""
    if heard_ago_s > LOST_AFTER_S:
        return "lost"
    return "suspect" if heard_ago_s > SUSPECT_AFTER_S else "ok"


def _node_state(record: NodeRecord, heard_ago_s: float) -> tuple[str, str]:
    alive = liveness(heard_ago_s)
    if alive != "ok":
        return alive, f"not heard of for {heard_ago_s:.0f} s"
    report = record.report
    if report is None or record.lease is None:
        return "waiting", "not reported in full yet"
    if _restarted(record):
        return "waiting", "its agent has not reported since it began"
    if report.draining:
        return "draining", ""
    if report.triton_state != "ready":
        return "waiting", f"Triton is {report.triton_state}" + (
            f": {report.triton_reason}" if report.triton_reason else ""
        )
    return ("ok", "") if record.lease.ready else ("waiting", "takes no work yet")


def _restarted(record: NodeRecord) -> bool:
    """Whether what was reported is of an earlier run than the one that lives."""
    report, lease = record.report, record.lease
    return bool(report and lease and lease.agent_run_id not in {"", report.agent_run_id})


_UNKNOWN_NODE = NodeReport("", "", 0, 0, (), False, "unknown", "", 0, False, ())  # noqa: FBT003


def _node_view(key: str, record: NodeRecord, wanted: frozenset[str], now_s: float) -> NodeView:
    heard_ago_s = max(0.0, now_s - record.heard_s)
    state, reason = _node_state(record, heard_ago_s)
    region, site, name = key.split(".")
    report, lease = record.report or _UNKNOWN_NODE, record.lease
    known = state in HEARD_STATES and not _restarted(record)
    replicas = _replica_views(report, wanted)
    if not known:
        replicas = [replace(one, state="unknown", reason="") for one in replicas]
    ready_slots = sum(replica.slots for replica in replicas if replica.state == "ready")
    return NodeView(
        node=key,
        region=region,
        site=site,
        name=name,
        state=state,
        reason=reason,
        heard_ago_s=round(heard_ago_s, 1),
        agent_version=report.agent_version,
        agent_run_id=report.agent_run_id,
        triton_state=report.triton_state if known else "unknown",
        triton_reason=report.triton_reason if known else "",
        triton_restarts=report.triton_restarts,
        memory_mib=report.memory_mib,
        slots=report.slots,
        ready_slots=min(ready_slots, report.slots) if state == "ok" else 0,
        in_flight=lease.in_flight if lease else 0,
        finished_count=lease.finished_count if lease else 0,
        failed_count=lease.failed_count if lease else 0,
        gpus=list(report.gpus),
        energy_measured=report.energy_measured,
        replicas=replicas,
    )


def _replica_views(report: NodeReport, wanted: frozenset[str]) -> list[ReplicaView]:
    present = [
        ReplicaView(
            deployment=replica.deployment,
            bundle_digest=replica.bundle_digest,
            state=replica.state,
            reason=replica.reason,
            slots=replica.slots,
            wanted=replica.deployment in wanted,
        )
        for replica in report.replicas
    ]
    missing = wanted - {replica.deployment for replica in present}
    present.extend(ReplicaView(name, "", "missing", "", 0, wanted=True) for name in missing)
    return sorted(present, key=lambda replica: replica.deployment)


def gateway_views(fleet: Fleet, now_s: float) -> list[GatewayView]:
    """Every gateway, in the order of its name."""
    return [_gateway_view(key, record, now_s) for key, record in fleet.gateways.items()]


def _gateway_view(key: str, record: GatewayRecord, now_s: float) -> GatewayView:
    heard_ago_s = max(0.0, now_s - record.heard_s)
    loads = record.report.loads.values()
    return GatewayView(
        gateway=key,
        region=record.report.region,
        state=liveness(heard_ago_s),
        heard_ago_s=round(heard_ago_s, 1),
        in_flight=sum(load.in_flight for load in loads),
        queued=sum(load.queued for load in loads),
        completed_count=sum(load.counters.completed for load in loads),
        failed_count=sum(load.counters.failed for load in loads),
        refused_count=sum(load.counters.refused for load in loads),
    )


def deployment_views(fleet: Fleet, now_s: float) -> list[DeploymentView]:
    """Every declared deployment, in the order of its name."""
    return [
        _deployment_view(name, declared, fleet, now_s)
        for name, declared in fleet.deployments.items()
    ]


def _deployment_view(
    name: str, declared: DeploymentReport, fleet: Fleet, now_s: float
) -> DeploymentView:
    route = fleet.routes.get(name) or RouteReport((), "not planned yet")
    ready_replicas = sum(target.ready_replicas for target in route.targets)
    in_flight, queued = _load(name, fleet, now_s)
    window = fleet.work.get(name)
    return DeploymentView(
        deployment=name,
        state=_deployment_state(ready_replicas, declared.replicas, declared.max_replicas),
        unready_reason=route.unready_reason,
        bundle=declared.bundle,
        bundle_version=declared.bundle_version,
        bundle_digest=declared.bundle_digest,
        task=declared.task,
        price_class=declared.price_class,
        replicas=declared.replicas,
        max_replicas=declared.max_replicas,
        ready_replicas=ready_replicas,
        ready_slots=sum(target.ready_slots for target in route.targets),
        regions=[
            CapacityView(target.region, target.ready_replicas, target.ready_slots)
            for target in route.targets
        ],
        tenants=list(declared.tenants),
        queued=queued,
        in_flight=in_flight,
        rates_10s=_rates(window, 10.0, now_s),
        rates_60s=_rates(window, 60.0, now_s),
    )


def _deployment_state(ready_replicas: int, wanted: int, most: int) -> str:
    if wanted == 0 and ready_replicas == 0:
        return "asleep" if most else "stopped"
    if ready_replicas == 0:
        return "unready"
    return "ready" if ready_replicas >= wanted else "partial"


def _load(deployment: str, fleet: Fleet, now_s: float) -> tuple[int, int]:
    """In flight and queued over the gateways that are heard of."""
    loads = [
        load
        for _, record in fleet.gateways.items()
        if liveness(now_s - record.heard_s) == "ok"
        and (load := record.report.loads.get(deployment)) is not None
    ]
    return sum(load.in_flight for load in loads), sum(load.queued for load in loads)


def _rates(window: CounterWindow | None, window_s: float, now_s: float) -> Rates:
    return window.rates(window_s, now_s) if window else Rates()
