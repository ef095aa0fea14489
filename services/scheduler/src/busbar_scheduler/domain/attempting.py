"""One pass over a snapshot: keep, place, make room, move, fill up, search, let linger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from random import Random

from busbar_scheduler.domain.arrays import Fleet
from busbar_scheduler.domain.filling import by_difficulty, fulfil, missing, top_up
from busbar_scheduler.domain.fleet import Deployment, Snapshot
from busbar_scheduler.domain.keeping import keep, linger, put_back
from busbar_scheduler.domain.making_room import RoomMaker
from busbar_scheduler.domain.packing import Packing
from busbar_scheduler.domain.relocating import relocate
from busbar_scheduler.domain.searching import NODES_MAX, REPLICAS_MAX, Goals, search

_ATTEMPTS_MAX = 400
"""Ways of making room that a plan tries."""
_PATIENCE = 15
"""Tries in a row that may bring nothing before the search of a small fleet ends."""
_SEED = 1


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a pass came to."""

    packing: Packing
    gone: Mapping[str, Mapping[int, str]]
    """Deployment → node it was told to leave → why."""
    short: Mapping[str, int]
    """Deployment → promised replicas that have no place."""
    lingering: Mapping[str, Sequence[int]]
    touched: frozenset[str]
    """Deployments that were in play, or were moved to make room."""
    settled: bool
    """Whether nothing was moved, so that another pass would find nothing to do."""


def attempt(snapshot: Snapshot, earlier: Packing | None, carried: AbstractSet[str]) -> Attempt:
    """Plan once; deployments that are `carried` stand as they did earlier and are not in play."""
    packing = _packing(snapshot, earlier, carried)
    wanted = {one.name: snapshot.wanted(one) for one in snapshot.deployments}
    # The order in which things are listed must not matter: not to the dice either.
    every = sorted(snapshot.deployments, key=lambda one: (one.created_unix_ms, one.name))
    in_play = sorted(
        [one for one in every if one.name not in carried],
        key=lambda one: _grows(snapshot, packing.fleet, one),
    )
    # 1. What is placed stays; what keeps its bundle gets its room before what grows.
    gone = {one.name: keep(packing, one, wanted[one.name]) for one in in_play}
    kept = packing.mark()
    # 2. Promises, the hardest to keep first, then with moves where there is no room.
    hardest_first = by_difficulty(packing, [one for one in in_play if missing(packing, one)])
    for deployment in hardest_first:
        fulfil(packing, deployment)
    room = RoomMaker(packing, _ATTEMPTS_MAX)
    for deployment in hardest_first:
        room.fulfil(deployment)
    for deployment in in_play:
        put_back(packing, deployment, wanted[deployment.name], gone[deployment.name])
    # 3. What stands where power is dear moves where that pays; then what else brings something in.
    for deployment in in_play:
        relocate(packing, deployment)
    top_up(packing, [(one, wanted[one.name]) for one in in_play])
    for deployment in in_play:
        room.gain(deployment, wanted[deployment.name])
    # 4. A small fleet is searched for something better.
    if len(snapshot.nodes) <= NODES_MAX and sum(wanted.values()) <= REPLICAS_MAX:
        goals = Goals(every, wanted)
        search(packing, goals, _PATIENCE, Random(_SEED))  # noqa: S311 # nothing secret
    settled = not packing.moved_since(kept)
    touched = packing.touched() | {one.name for one in in_play}
    concerned = [one for one in every if one.name in touched]
    short = {one.name: missing(packing, one) for one in concerned}
    # 5. What is replaced serves on until its replacement does.
    lingering = {one.name: linger(packing, one, wanted[one.name]) for one in concerned}
    return Attempt(packing, gone, short, lingering, touched, settled)


def _packing(snapshot: Snapshot, earlier: Packing | None, carried: AbstractSet[str]) -> Packing:
    """What is carried, where it stood."""
    fleet = Fleet.of(snapshot, earlier.fleet if earlier else None)
    if earlier is None or not carried:
        return Packing(fleet)
    declared = {one.name for one in snapshot.deployments}
    if fleet.same_nodes(earlier.fleet):
        return earlier.after(fleet, carried & declared)
    packing = Packing(fleet)
    packing.load(earlier, sorted(carried & declared))
    return packing


def _grows(snapshot: Snapshot, fleet: Fleet, deployment: Deployment) -> bool:
    """Whether it stands somewhere with another bundle than the declared one."""
    return any(
        held.deployment == deployment.name and held.digest != deployment.digest
        for at in fleet.before.get(deployment.name, ())
        for held in snapshot.placements[fleet.nodes[at].key]
    )
