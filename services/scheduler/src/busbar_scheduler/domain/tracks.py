"""A deployment with a version on trial is placed as two, and reached as one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from busbar_scheduler.domain.fleet import (
    CanaryRoute,
    Deployment,
    Order,
    ReplicaState,
    Route,
    Routes,
    Snapshot,
)
from busbar_scheduler.domain.rollouts import Canary, Phase, is_track, track_of

_PERCENT = 100


def expanded(snapshot: Snapshot) -> Snapshot:
    """The same with versions on trial as deployments of their own."""
    if all(one.canary is None for one in snapshot.deployments):
        return snapshot
    return replace(snapshot, deployments=tuple(_units(snapshot)))


def _units(snapshot: Snapshot) -> Iterator[Deployment]:
    for one in snapshot.deployments:
        if one.canary is None:
            yield one
            continue
        # What a version is measured by does not sleep.
        yield replace(one, replicas=max(1, one.replicas), max_replicas=max(1, one.max_replicas))
        yield replace(
            one,
            name=track_of(one.name),
            digest=one.canary.digest,
            manifest=one.canary.manifest,
            replicas=canary_replicas(one, one.canary, snapshot.wanted(one)),
            max_replicas=0,
            survives_site_loss=one.survives_site_loss and one.canary.phase is Phase.SETTLING,
            canary=None,
        )


def canary_replicas(deployment: Deployment, canary: Canary, wanted: int) -> int:
    """Replicas whose slots are the canary's share of those of the version that serves."""
    slots = max(1, wanted) * deployment.manifest.slots * canary.capacity_percent
    return max(1, -(-slots // (_PERCENT * max(1, canary.manifest.slots))))


def ready_replicas(snapshot: Snapshot, name: str, digest: str) -> int:
    """Replicas of a version that take work."""
    return sum(
        node.health.serves
        and node.order is not Order.QUARANTINE
        and (replica := node.replica_of(name)) is not None
        and replica.state is ReplicaState.READY
        and replica.digest == digest
        for node in snapshot.nodes
    )


def joined(routes: Routes, snapshot: Snapshot) -> Routes:
    """Routes by deployment: what is reached under a track becomes part of its deployment's."""
    tried = {one.name: one.canary for one in snapshot.deployments if one.canary is not None}
    if not tried:
        return routes
    replicas = {one.name: one.replicas for one in snapshot.deployments}
    found = {name: route for name, route in routes.items() if not is_track(name)}
    for name, canary in tried.items():
        track = track_of(name)
        if name in found and track in routes:
            needed = replicas[track] * max(1, canary.manifest.slots)
            found[name] = replace(
                found[name], canary=_canary_route(canary, track, routes[track], needed)
            )
    return found


def _canary_route(canary: Canary, track: str, route: Route, needed_slots: int) -> CanaryRoute:
    """Its share shrinks with what it lacks, so that it gets no more than it can work on."""
    ready = sum(one.ready_slots for one in route.targets)
    percent = canary.share_percent * min(ready, needed_slots) // needed_slots
    return CanaryRoute(track, canary.digest, percent, route.targets)
