"""One day: the fleet, what runs on it, who asks, and what goes wrong. All of it from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random

from busbar_gateway.domain.policies import Band, Policy
from busbar_scheduler.domain.fleet import SCALE_DOWN_AFTER_S, Deployment, Site
from busbar_scheduler.domain.manifest import Manifest, Task

from simulation.fleet.demand import KINDS, Asking, Speed

ANSWER_TOKENS_MAX = 2_048
_DAY_S = 86_400.0
_KWH = 1_000_000
"""Nanos: a thousandth of a dollar."""


class Trouble(StrEnum):
    """What goes wrong."""

    OUTAGE = "outage"
    """A site loses its power, unannounced."""
    MAINTENANCE = "maintenance"
    """A site is drained, and loses its power when the grace is over."""
    CURTAILMENT = "curtailment"
    """A site is told to draw less from the end of the notice on."""
    CUT = "cut"
    """A site's link carries nothing, without a reset."""
    CRASH = "crash"
    """A node's agent dies and comes back."""
    ENGINE = "engine"
    """A node's Triton dies and comes back."""
    SLOW = "slow"
    """A node takes several times as long."""
    UNLED = "unled"
    """No scheduler runs."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    at_s: float
    trouble: Trouble
    where: str
    """Key of a site or a node; empty for what concerns all."""
    lasts_s: float
    notice_s: float = 0.0
    degree: float = 0.0
    """What part of the power is left; how many times as slow."""


@dataclass(frozen=True, slots=True)
class Box:
    """One node as it was bought."""

    key: str
    memory_mib: int
    slots: int


@dataclass(frozen=True, slots=True)
class Day:
    """Everything that is not decided: the same for every policy."""

    seed: int
    lasts_s: float
    regions: tuple[str, ...]
    sites: tuple[Site, ...]
    boxes: tuple[Box, ...]
    deployments: tuple[Deployment, ...]
    speeds: dict[str, Speed]
    tenants: dict[str, Policy]
    asking: tuple[Asking, ...]
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Size:
    """How large a day is."""

    sites: int
    nodes_at_site: int
    regions: int
    deployments: int
    tenants: int
    requests_per_s: float
    lasts_s: float
    day_s: float
    """How long the sun takes; shorter in a shortened day."""
    faults_per_site: float


SHORT = Size(6, 7, 3, 5, 6, 1.0, 500.0, 500.0, 1.0)
LONGER = replace(SHORT, lasts_s=2_000.0, day_s=2_000.0)
"""Long enough that loading a model, up to seven minutes, pays."""
SMALL = Size(4, 4, 2, 4, 5, 0.8, 400.0, 400.0, 1.0)
"""So few nodes that the planner searches for something better than it found."""


def whole(sites: int, hours: float, requests_per_s: float, sun_hours: float = 24.0) -> Size:
    """A day as long as it is, or as long as the sun takes: fifty nodes at each site."""
    lasts_s, day_s = hours * 3_600, sun_hours * 3_600
    return Size(sites, 50, 4, sites, sites + 20, requests_per_s, lasts_s, day_s, 6.0)


def draw(seed: int, size: Size) -> Day:
    """The day of a seed."""
    random = Random(f"day {seed}")
    regions = tuple(f"r{at}" for at in range(size.regions))
    deployments, speeds = _models(random, size, regions)
    tenants = {f"t{at}": _policy(random, size) for at in range(size.tenants)}
    asking = tuple(_asking(random, size, regions, deployments, list(tenants)))
    sites = tuple(_sites(random, size, regions, deployments))
    boxes = tuple(_boxes(random, size, sites))
    faults = tuple(sorted(_faults(random, size, sites, boxes), key=lambda one: one.at_s))
    return Day(
        seed,
        size.lasts_s,
        regions,
        sites,
        boxes,
        deployments,
        speeds,
        tenants,
        asking,
        faults,
    )


# GiB, slots, watts; prompt and answer tokens a second of one slot.
_MODELS = ((8, 4, 250, 4_000, 40), (18, 4, 350, 2_500, 25), (40, 2, 600, 1_500, 18))


def _models(
    random: Random, size: Size, regions: tuple[str, ...]
) -> tuple[tuple[Deployment, ...], dict[str, Speed]]:
    made, speeds = list[Deployment](), dict[str, Speed]()
    for at in range(size.deployments):
        gib, slots, power_w, prompt, answer = random.choices(_MODELS, weights=(5, 3, 2))[0]
        name = f"m{at:02}"
        manifest = Manifest(
            name,
            "1",
            Task.CHAT,
            slots,
            gib * 1_024,
            "default",
            max_output_tokens=ANSWER_TOKENS_MAX,
            power_w=power_w,
        )
        tied = random.random() < 0.25
        replicas = random.randint(1, 2)
        made.append(
            Deployment(
                name,
                f"sha256:{at:064x}",
                manifest,
                replicas,
                regions=(random.choice(regions),) if tied else (),
                created_unix_ms=at,
                max_replicas=random.randint(6, 12),
                survives_site_loss=random.random() < 0.4,
                scale_down_after_s=max(30, round(SCALE_DOWN_AFTER_S * size.day_s / _DAY_S)),
                value_nanos_per_request=random.randint(200, 900) * 1_000,
            )
        )
        speeds[name] = Speed(prompt, answer)
    return tuple(made), speeds


def _policy(random: Random, size: Size) -> Policy:
    band = random.choices(list(Band), weights=(2, 6, 1))[0]
    limited = random.random() < 0.2
    per_minute = round(240 * size.requests_per_s / size.tenants) if limited else 0
    return Policy(band, random.choice((1, 1, 2, 4)), requests_per_minute=per_minute)


def _asking(
    random: Random,
    size: Size,
    regions: tuple[str, ...],
    deployments: tuple[Deployment, ...],
    tenants: list[str],
) -> Iterator[Asking]:
    pairs = [(tenant, one.name) for tenant in tenants for one in random.sample(deployments, 2)]
    shares = [random.paretovariate(1.3) for _ in pairs]
    for (tenant, name), share in zip(pairs, shares, strict=True):
        yield Asking(
            tenant,
            name,
            random.choices(list(KINDS), weights=(2, 6, 3))[0],
            size.requests_per_s * share / sum(shares),
            random.gauss(14, 2),
            random.uniform(0.3, 0.9),
            tuple(random.sample(regions, len(regions))),
            ANSWER_TOKENS_MAX,
            size.day_s,
        )


def _sites(
    random: Random, size: Size, regions: tuple[str, ...], deployments: tuple[Deployment, ...]
) -> Iterator[Site]:
    """Together they can power about one and a half times what all models take at their most."""
    all_w = sum(one.most * one.manifest.power_w for one in deployments)
    for at in range(size.sites):
        cap_w = max(1_800, round(random.uniform(1.0, 2.0) * all_w / size.sites))
        key = f"{regions[at % len(regions)]}.s{at:02}"
        yield Site(key, cap_w, random.randint(20, 120) * _KWH)


def _boxes(random: Random, size: Size, sites: tuple[Site, ...]) -> Iterator[Box]:
    for site in sites:
        gib = random.choice((48, 80))
        for at in range(size.nodes_at_site):
            yield Box(f"{site.key}.n{at:02}", gib * 1_024, 16)


def _faults(
    random: Random, size: Size, sites: tuple[Site, ...], boxes: tuple[Box, ...]
) -> Iterator[Fault]:
    """At one site, one thing after the other; what befalls single nodes comes at any time."""
    scale = min(1.0, size.lasts_s / 10_000)
    for site in sites:
        at_s = random.expovariate(size.faults_per_site / size.lasts_s)
        while at_s < size.lasts_s:
            fault = _at_site(random, site.key, at_s, scale)
            yield fault
            # A site that is back has the time to load its models before the next thing.
            at_s = fault.at_s + fault.notice_s + fault.lasts_s + 120
            at_s += random.expovariate(size.faults_per_site / size.lasts_s)
    for _ in range(round(size.faults_per_site * size.sites)):
        at_s, box = random.uniform(0, size.lasts_s), random.choice(boxes)
        yield _at_node(random, box.key, at_s, scale)
    for at in range(1, 4):
        if random.random() < 0.5:
            yield Fault(at * size.lasts_s / 4, Trouble.UNLED, "", random.uniform(5, 90))


def _at_site(random: Random, site: str, at_s: float, scale: float) -> Fault:
    trouble = random.choices(
        (Trouble.OUTAGE, Trouble.MAINTENANCE, Trouble.CURTAILMENT, Trouble.CUT),
        weights=(2, 1, 2, 4),
    )[0]
    match trouble:
        case Trouble.OUTAGE:
            return Fault(at_s, trouble, site, random.uniform(120, 5_400) * scale + 30)
        case Trouble.MAINTENANCE:
            return Fault(at_s, trouble, site, random.uniform(600, 5_400) * scale, 300)
        case Trouble.CURTAILMENT:
            lasts_s, left = random.uniform(900, 10_800) * scale, random.uniform(0.2, 0.7)
            return Fault(at_s, trouble, site, lasts_s, 300, left)
        case _:
            lasts_s = random.choice((2, 5, 10, 60, 200))
            return Fault(at_s, Trouble.CUT, site, lasts_s * random.uniform(0.8, 1.2))


def _at_node(random: Random, node: str, at_s: float, scale: float) -> Fault:
    trouble = random.choices((Trouble.CRASH, Trouble.ENGINE, Trouble.SLOW), weights=(2, 3, 2))[0]
    match trouble:
        case Trouble.CRASH:
            return Fault(at_s, trouble, node, random.uniform(3, 180))
        case Trouble.ENGINE:
            return Fault(at_s, trouble, node, random.uniform(3, 20))
        case _:
            lasts_s = random.uniform(600, 7_200) * scale
            return Fault(at_s, Trouble.SLOW, node, lasts_s, degree=random.uniform(2, 5))
