"""The nodes of a snapshot as arrays, and what of them changes from one snapshot to the next.

A fleet of thousands of nodes is gathered anew each time, and nearly all of it is as it was:
what is the same object as before is not looked at again; see docs/decisions/0027.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from busbar_scheduler.domain.fleet import (
    Assignment,
    Demand,
    Node,
    Order,
    Placements,
    ReplicaState,
    Site,
    Snapshot,
)

Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_ON_DISK = {ReplicaState.LOADING, ReplicaState.WARMING, ReplicaState.READY, ReplicaState.DRAINING}


@dataclass(frozen=True, slots=True)
class Fleet:
    """The parts of a snapshot that do not change while a plan is made, by index."""

    nodes: tuple[Node, ...]
    index: Mapping[str, int]
    sites: tuple[Site, ...]
    site: Indices
    """Node → its site."""
    region: Indices
    feeder: Indices
    takes_new: Mask
    keeps: Mask
    """Whether what is there stays there, as far as the node's health goes."""
    cached: Mapping[str, tuple[int, ...]]
    """Digest → nodes that have it on disk."""
    avoided: Mapping[str, tuple[int, ...]]
    """Digest → nodes that it has to keep off."""
    suspended: Mapping[str, str]
    before: Mapping[str, frozenset[int]]
    """Deployment → nodes that were told to hold it."""
    placements: Placements
    """What `before` was read from."""
    demands: Mapping[str, Demand]

    @classmethod
    def of(cls, snapshot: Snapshot, earlier: Fleet | None = None) -> Fleet:
        """The fleet of a snapshot, its nodes ordered by key; quick where most is as it was."""
        nodes = tuple(sorted(snapshot.nodes, key=_key))
        if earlier is not None and earlier.has(snapshot, nodes):
            return earlier.after(snapshot, nodes)
        index = {node.key: at for at, node in enumerate(nodes)}
        sites, of_node = _sites(snapshot, nodes)
        home = [sites[at] for at in of_node]
        pairs = list(zip(nodes, home, strict=True))
        feeders = [node.feeder or site.feeder or site.key for node, site in pairs]
        takes_new = [node.takes_new and site.order is Order.SERVE for node, site in pairs]
        return cls(
            nodes=nodes,
            index=index,
            sites=sites,
            site=np.array(of_node, dtype=np.int64),
            region=_numbered([node.region for node in nodes]),
            feeder=_numbered(feeders),
            takes_new=np.array(takes_new, dtype=np.bool_),
            keeps=np.array([node.health.keeps for node in nodes], dtype=np.bool_),
            cached=_where(nodes, _on_disk),
            avoided=_where(nodes, _kept_off),
            suspended=snapshot.suspended,
            before=_told(snapshot.placements, index),
            placements=snapshot.placements,
            demands=snapshot.demands,
        )

    def same_nodes(self, other: Fleet) -> bool:
        """Whether both have the same nodes, by key, at the same sites."""
        return self.index is other.index

    def moved(self, other: Fleet) -> list[int]:
        """Nodes that are not as they are in another fleet, or not in it."""
        if self.same_nodes(other):
            pairs = zip(self.nodes, other.nodes, strict=True)
            return [at for at, (one, then) in enumerate(pairs) if one is not then]
        known = {node.key: node for node in other.nodes}
        return [at for at, one in enumerate(self.nodes) if known.get(one.key) is not one]

    def has(self, snapshot: Snapshot, nodes: tuple[Node, ...]) -> bool:
        """Whether these are the same nodes at the same sites, on the same feeders.

        Sites may have another cap, price or order.
        """
        if len(nodes) != len(self.nodes):
            return False
        pairs = zip(nodes, self.nodes, strict=True)
        if any(
            now is not then and (now.key, now.feeder) != (then.key, then.feeder)
            for now, then in pairs
        ):
            return False
        return all(described(snapshot, one).feeder == one.feeder for one in self.sites)

    def after(self, snapshot: Snapshot, nodes: tuple[Node, ...]) -> Fleet:
        """The same nodes at the same sites, some of them in another state."""
        sites = tuple(described(snapshot, one) for one in self.sites)
        takes_new, keeps = self._open_at(sites), self.keeps.copy()
        cached, avoided = dict(self.cached), dict(self.avoided)
        for at, (node, then) in enumerate(zip(nodes, self.nodes, strict=True)):
            if node is then:
                continue
            serves = sites[self.site[at]].order is Order.SERVE
            takes_new[at], keeps[at] = node.takes_new and serves, node.health.keeps
            _relocate(cached, at, _on_disk(then), _on_disk(node))
            _relocate(avoided, at, _kept_off(then), _kept_off(node))
        return replace(
            self,
            nodes=nodes,
            sites=sites,
            takes_new=takes_new,
            keeps=keeps,
            cached=cached,
            avoided=avoided,
            suspended=snapshot.suspended,
            before=self._told_after(snapshot.placements),
            placements=snapshot.placements,
            demands=snapshot.demands,
        )

    def _open_at(self, sites: tuple[Site, ...]) -> Mask:
        """As `takes_new`, with sites that were told something else."""
        takes_new = self.takes_new.copy()
        for number, (site, was) in enumerate(zip(sites, self.sites, strict=True)):
            if site.order is not was.order:
                serves, there = site.order is Order.SERVE, np.flatnonzero(self.site == number)
                takes_new[there] = [serves and self.nodes[at].takes_new for at in there]
        return takes_new

    def _told_after(self, placements: Placements) -> Mapping[str, frozenset[int]]:
        """As `before`, from other placements."""
        found = dict(self.before)
        for key in differing(self.placements, placements):
            if key not in self.index:
                continue
            at = self.index[key]
            for held in self.placements.get(key, ()):
                found[held.deployment] -= {at}
            for held in placements.get(key, ()):
                found[held.deployment] = found.get(held.deployment, frozenset()) | {at}
        return found

    def cheaper_than(self, by_site: list[int], cost: int) -> Mask:
        """Nodes at sites where something costs less; `by_site` is what it costs at each."""
        return (np.array(by_site, dtype=np.int64) < cost)[self.site]

    def empties(self, node: int) -> bool:
        """Whether what is on a node has to go."""
        return self.nodes[node].order.empties or self.sites[self.site[node]].order.empties


def described(snapshot: Snapshot, site: Site) -> Site:
    """How a site is described now; the same object as before where nothing is new."""
    now = snapshot.sites.get(site.key) or Site(site.key)
    return site if now == site else now


def _sites(snapshot: Snapshot, nodes: tuple[Node, ...]) -> tuple[tuple[Site, ...], list[int]]:
    numbers, of_node, sites = dict[str, int](), list[int](), list[Site]()
    for node in nodes:
        key = node.site_key
        if key not in numbers:
            numbers[key] = len(sites)
            sites.append(snapshot.site_of(node))
        of_node.append(numbers[key])
    return tuple(sites), of_node


def _numbered(names: list[str]) -> Indices:
    numbers = {name: at for at, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _key(node: Node) -> str:
    return node.key


def _on_disk(node: Node) -> set[str]:
    return {one.digest for one in node.replicas if one.state in _ON_DISK}


def _kept_off(node: Node) -> set[str]:
    return {one.digest for one in node.avoids}


def _where(
    nodes: tuple[Node, ...], digests: Callable[[Node], set[str]]
) -> dict[str, tuple[int, ...]]:
    found = dict[str, list[int]]()
    for at, node in enumerate(nodes):
        if node.replicas or node.avoids:
            for digest in digests(node):
                found.setdefault(digest, []).append(at)
    return {digest: tuple(at) for digest, at in found.items()}


def _relocate(
    where: dict[str, tuple[int, ...]], at: int, then: Iterable[str], now: Iterable[str]
) -> None:
    for digest in set(then) - set(now):
        where[digest] = tuple(one for one in where[digest] if one != at)
    for digest in set(now) - set(then):
        where[digest] = (*where.get(digest, ()), at)


def differing(then: Placements, now: Placements) -> Iterable[str]:
    """Keys of nodes that are told something else than before."""
    nothing: tuple[Assignment, ...] = ()
    for key, held in now.items():
        before = then.get(key, nothing)
        if held is not before and held != before:
            yield key
    for key in then.keys() - now.keys():
        if then[key]:
            yield key


def _told(placements: Placements, index: Mapping[str, int]) -> dict[str, frozenset[int]]:
    found = dict[str, set[int]]()
    for key, assignments in placements.items():
        if key in index:
            for held in assignments:
                found.setdefault(held.deployment, set()).add(index[key])
    return {name: frozenset(at) for name, at in found.items()}
