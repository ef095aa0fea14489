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
from busbar_scheduler.domain.manifest import prepared_otherwise
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
        # What a version is measured by does not sleep; but it may be stopped.
        awake = min(1, one.most)
        yield replace(
            one, replicas=max(awake, one.replicas), max_replicas=max(awake, one.max_replicas)
        )
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
    if not deployment.most:
        return 0
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


def unready(snapshot: Snapshot, name: str, needed: int) -> str:
    """What a version on trial lacks of the replicas that it needs, for people."""
    states = [
        f"{replica.state} on {node.label}" + (f": {replica.reason}" if replica.reason else "")
        for node in snapshot.nodes
        if (replica := node.replica_of(name)) and replica.state is not ReplicaState.READY
    ]
    placed = placed_replicas(snapshot, name)
    if placed < needed:
        states.append(
            f"{placed} of {needed} replicas have a place, beside those of the version that serves"
        )
    return "; ".join(states) or "it has not got all its replicas"


def placed_replicas(snapshot: Snapshot, name: str) -> int:
    """Replicas that were told to nodes which keep what they hold."""
    return sum(
        node.health.keeps
        and any(held.deployment == name for held in snapshot.placements.get(node.key, ()))
        for node in snapshot.nodes
    )


def joined(routes: Routes, snapshot: Snapshot) -> Routes:
    """Routes by deployment: what is reached under a track becomes part of its deployment's."""
    tried = {one.name: one.canary for one in snapshot.deployments if one.canary is not None}
    if not tried:
        return routes
    replicas = {one.name: one.replicas for one in snapshot.deployments}
    manifests = {one.name: one.manifest for one in snapshot.deployments}
    found = {name: route for name, route in routes.items() if not is_track(name)}
    for name, canary in tried.items():
        track = track_of(name)
        if name in found and track in routes:
            needed = max(1, replicas[track] * canary.manifest.slots)
            alone = replicas[track] > 0 and not found[name].targets
            stands_in = canary.phase is Phase.LEAVING or not prepared_otherwise(
                manifests[name], canary.manifest
            )
            found[name] = replace(
                _described(found[name], routes[track]),
                canary=_canary_route(
                    canary, track, routes[track], needed, alone=alone and stands_in
                ),
            )
    return found


def _described(route: Route, track: Route) -> Route:
    """What gateways know a model by comes from its track while that alone serves.

    Without it a gateway takes no model for decoupled, and checks no request.
    """
    if route.model_metadata:
        return route
    return replace(route, model_metadata=track.model_metadata, model_config=track.model_config)


def _canary_route(
    canary: Canary, track: str, route: Route, needed_slots: int, *, alone: bool
) -> CanaryRoute:
    """Its share shrinks with what it lacks, so that it gets no more than it can work on.

    While no other serves it gets some in any case, also where it has none before it takes over or
    after it was given up: gateways give any share of such to it whole.
    """
    ready = sum(one.ready_slots for one in route.targets)
    percent = canary.share_percent * min(ready, needed_slots) // needed_slots
    if alone and ready:
        percent = max(1, percent)
    return CanaryRoute(track, canary.digest, percent, route.targets)
