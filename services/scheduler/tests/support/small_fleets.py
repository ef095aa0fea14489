"""Small random fleets that are short of everything, and what a plan holds."""

from __future__ import annotations

from random import Random

from busbar_scheduler.domain.decisions import Verdict
from busbar_scheduler.domain.fleet import Assignment, Demand, Deployment, Node, Site, Snapshot
from busbar_scheduler.domain.manifest import Manifest, Task
from busbar_scheduler.domain.planning import Plan, plan

Held = dict[str, set[str]]
"""Deployment → nodes."""


def small_fleet(seed: int) -> Snapshot:
    """Two regions, two to four sites, scarce in memory or slots or power, some of it placed."""
    random = Random(seed)
    sites = [f"r{1 + at % 2}.s{at}" for at in range(random.randint(2, 4))]
    nodes = tuple(
        Node(
            key=f"{site}.n{at}",
            region=site.split(".")[0],
            site=site.split(".")[1],
            memory_mib=random.choice([24, 48, 80]) * 1024,
            slots=random.choice([16, 32, 64]),
            power_cap_w=random.choice([0, 0, 1_000, 2_000]),
            feeder=random.choice(["", "", f"{site}.f{at % 2}"]),
        )
        for site in sites
        for at in range(random.randint(1, 4))
    )
    deployments = tuple(
        _wanted(random, f"d{at}", sites, nodes) for at in range(random.randint(2, 8))
    )
    demands = dict(_demanded(random, one) for one in deployments)
    return Snapshot(
        1,
        deployments,
        nodes,
        placements=_placed(random, deployments, nodes),
        sites={
            site: Site(
                site,
                power_cap_w=random.choice([0, 0, 3_000, 5_000]),
                energy_nanos_per_kwh=random.randint(20, 200) * 1_000_000,
            )
            for site in sites
        },
        demands=demands,
    )


def _wanted(random: Random, name: str, sites: list[str], nodes: tuple[Node, ...]) -> Deployment:
    manifest = Manifest(
        name,
        "1",
        Task.CHAT,
        random.choice([4, 8, 16]),
        random.choice([4, 10, 18, 40]) * 1024,
        "default",
        power_w=random.choice([200, 350, 700]),
    )
    return Deployment(
        name,
        "sha256:" + name,
        manifest,
        random.choice([0, 0, 1, 1, 2]),
        regions=random.choice([(), (), ("r1",), ("r2",)]),
        max_replicas=random.randint(0, 6),
        pins=random.choice([(), (), (), (), (random.choice(sites),)]),
        per_site_max=random.choice([0, 0, 0, 1, 2]),
        per_feeder_max=random.choice([0, 0, 0, 2]),
        survives_site_loss=random.random() < 0.15,
        value_nanos_per_request=random.randint(20, 400) * 1_000,
    )


def _demanded(random: Random, deployment: Deployment) -> tuple[str, Demand]:
    per_replica = random.randint(500, 5_000)
    asked = random.randint(0, 6 * per_replica)
    enough = min(deployment.most, max(deployment.replicas, -(-asked // per_replica)))
    return deployment.name, Demand(enough, asked, per_replica)


def _placed(
    random: Random, deployments: tuple[Deployment, ...], nodes: tuple[Node, ...]
) -> dict[str, tuple[Assignment, ...]]:
    """What an earlier plan for an earlier, smaller wish had put somewhere."""
    before = tuple(one for one in deployments if random.random() < 0.5)
    return dict(plan(Snapshot(0, before, nodes)).placements) if random.random() < 0.5 else {}


def held_by(made: Plan) -> Held:
    """Where replicas are, less those that only linger."""
    leaving = {
        (one.deployment, one.node) for one in made.decisions if one.verdict is Verdict.LEAVING
    }
    held: Held = {}
    for key, assignments in made.placements.items():
        for one in assignments:
            if (one.deployment, key) not in leaving:
                held.setdefault(one.deployment, set()).add(key)
    return held
