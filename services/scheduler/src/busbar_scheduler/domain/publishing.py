"""What has to be written so that the bus says what the plan says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from busbar_scheduler.domain.fleet import Assignment, Placements, Route, Routes
from busbar_scheduler.domain.planning import Plan
from busbar_scheduler.domain.tracks import joined


@dataclass(frozen=True, slots=True)
class Stamped:
    """Who wrote an entry and as which revision of its bucket."""

    fencing_token: int
    revision: int


@dataclass(frozen=True, slots=True)
class Published:
    """What stands in the buckets now."""

    placements: Placements = field(default_factory=dict[str, tuple[Assignment, ...]])
    routes: Routes = field(default_factory=dict[str, Route])
    placement_stamps: Mapping[str, Stamped] = field(default_factory=dict[str, Stamped])
    route_stamps: Mapping[str, Stamped] = field(default_factory=dict[str, Stamped])
    queues: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])
    """What each node was told that the queues of its deployments are called, where it was."""

    @property
    def highest_token(self) -> int:
        """The largest fencing token that was ever left in an entry."""
        stamps = [*self.placement_stamps.values(), *self.route_stamps.values()]
        return max((stamp.fencing_token for stamp in stamps), default=0)


@dataclass(frozen=True, slots=True)
class Changes:
    """What to write and what to delete, by key."""

    placements: Mapping[str, tuple[Assignment, ...]]
    placements_gone: tuple[str, ...]
    routes: Mapping[str, Route]
    routes_gone: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.placements or self.placements_gone or self.routes or self.routes_gone)


def queues_told(
    node: str, held: tuple[Assignment, ...], queues: Mapping[tuple[str, str], str]
) -> dict[str, str]:
    """What a node is told of the queues' names, by deployment; `queues` is by region, too."""
    region = node.partition(".")[0]
    return {one.deployment: name for one in held if (name := queues.get((region, one.deployment)))}


def diff(
    published: Published,
    plan: Plan,
    fencing_token: int,
    queues: Mapping[tuple[str, str], str] | None = None,
) -> Changes:
    """The smallest set of writes that makes `published` equal `plan`, with queues called so.

    A new leader rewrites every entry under its own token. That moves their
    revisions, so that whatever an older leader still has on the way is refused.
    """
    routes = joined(plan.routes, plan.snapshot)
    return Changes(
        placements={
            key: held
            for key, held in plan.placements.items()
            if published.placements.get(key) != held
            or published.placement_stamps[key].fencing_token != fencing_token
            or published.queues.get(key, {}) != queues_told(key, held, queues or {})
        },
        placements_gone=tuple(sorted(set(published.placement_stamps) - set(plan.placements))),
        routes={
            key: route
            for key, route in routes.items()
            if published.routes.get(key) != route
            or published.route_stamps[key].fencing_token != fencing_token
        },
        routes_gone=tuple(sorted(set(published.route_stamps) - set(routes))),
    )


def fencing_token(election_revision: int, highest_seen: int) -> int:
    """A token above all earlier ones, also when the leaders' bucket was made anew."""
    return max(election_revision, highest_seen + 1)
