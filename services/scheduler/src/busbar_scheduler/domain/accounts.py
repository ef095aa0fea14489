"""The whole account of one deployment's plan, for whoever asks why."""

from __future__ import annotations

from dataclasses import dataclass

from busbar_scheduler.domain import economy
from busbar_scheduler.domain.decisions import Decision, Verdict
from busbar_scheduler.domain.explaining import Hindered, hindrances, impossible
from busbar_scheduler.domain.fleet import Avoided, Deployment
from busbar_scheduler.domain.packing import NO_LIMIT, Packing
from busbar_scheduler.domain.planning import Plan
from busbar_scheduler.domain.surviving import survivors


@dataclass(frozen=True, slots=True)
class Place:
    """One replica that is held or was: what it costs there, and whether it had been cheaper."""

    decision: Decision
    energy_nanos_per_h: int
    loading_s: int
    """Seconds until it would serve; 0 when it was there before."""
    cheaper_places: int
    """Nodes it may run on where its power costs less."""
    cheaper_with_room: int
    """Those of them that have room for it now; moving there would cost more than it saves."""


@dataclass(frozen=True, slots=True)
class Account:
    """Why a deployment is where it is, and why it is not where it is not."""

    promised: int
    wanted: int
    placed: int
    short: int
    survivors: int
    """Replicas left when the site that holds most is lost."""
    revenue_nanos_per_h: int
    places: tuple[Place, ...]
    unplaced: tuple[Decision, ...]
    hindrances: tuple[Hindered, ...]
    """What keeps one more replica off the nodes that cannot take it."""
    open_nodes: int
    """Nodes that could take one more now."""
    never: str
    """Why it could not be placed even if nothing else were; empty when it could."""
    kept_off: tuple[tuple[str, Avoided], ...]
    """Nodes on which its bundle failed lately."""


def account_of(deployment: Deployment, plan: Plan, empty: Packing) -> Account:
    """Everything that was weighed for one deployment; `empty` as `emptied`."""
    packing, decisions = plan.packing, plan.decisions_on(deployment.name)
    leaving = sum(one.verdict is Verdict.LEAVING for one in decisions)
    placed = packing.count(deployment.name) - leaving
    demand = plan.snapshot.demands.get(deployment.name)
    return Account(
        promised=deployment.replicas,
        wanted=plan.snapshot.wanted(deployment),
        placed=placed,
        short=plan.short.get(deployment.name, 0),
        survivors=survivors(packing.per_site(deployment.name)),
        revenue_nanos_per_h=economy.revenue_nanos_per_h(deployment, demand, placed),
        places=tuple(_place(deployment, packing, one) for one in decisions if one.node),
        unplaced=tuple(one for one in decisions if not one.node),
        hindrances=hindrances(packing, deployment),
        open_nodes=int(packing.within_limits(deployment)[packing.fitting(deployment)].sum()),
        never=impossible(deployment, empty),
        kept_off=tuple(
            (node.key, avoided)
            for node in plan.snapshot.nodes
            if (avoided := node.avoided(deployment.digest))
        ),
    )


def _place(deployment: Deployment, packing: Packing, decision: Decision) -> Place:
    fleet = packing.fleet
    at = fleet.index.get(decision.node)
    if at is None:
        return Place(decision, 0, 0, 0, 0)
    energy = [economy.energy_nanos_per_h(deployment, site) for site in fleet.sites]
    here = energy[fleet.site[at]]
    cheaper = packing.allowed(deployment) & fleet.takes_new
    cheaper &= fleet.cheaper_than(energy, here)
    fitting = packing.fitting(deployment)
    cached = at in fleet.cached.get(deployment.digest, ())
    new = decision.verdict is Verdict.PLACED
    return Place(
        decision,
        energy_nanos_per_h=here,
        loading_s=economy.loading_s(deployment, cached=cached) if new else 0,
        cheaper_places=int(cheaper.sum()),
        cheaper_with_room=int(cheaper[fitting].sum()),
    )


@dataclass(frozen=True, slots=True)
class Room:
    """What a node has left; None where it has no limit."""

    memory_mib: int
    slots: int
    power_w: int | None
    site_power_w: int | None


def room_on(packing: Packing, node: str) -> Room:
    """What is left on a node when the plan is carried out."""
    at = packing.fleet.index[node]
    power_w = int(packing.power_w[at])
    site_power_w = int(packing.site_power_w[packing.fleet.site[at]])
    return Room(
        int(packing.memory_mib[at]),
        int(packing.slots[at]),
        power_w if power_w < NO_LIMIT // 2 else None,
        site_power_w if site_power_w < NO_LIMIT // 2 else None,
    )
