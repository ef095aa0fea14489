"""Which bundles are kept off which nodes, since they failed there, and for how long.

A node may be unable to run one model that others run; see docs/decisions/0047.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from busbar_scheduler.domain.fleet import Avoided, Replica, ReplicaState
from busbar_scheduler.domain.quarantine import TRITONS_LOST_WITHIN_S

FAILED_MAX, CRASHED_MAX = 3, 2
"""Failures in a row, and deaths of Triton among them, after which a bundle leaves a node.

One death less than what has the whole node kept out.
"""
FIRST_S, CRASHED_FIRST_S, LONGEST_S = 60.0, TRITONS_LOST_WITHIN_S, 3600.0
_DOUBLINGS_MAX = 16
SUSPENDED_AT = 2
"""A bundle that failed on so many nodes, and on as many as it works on, is tried on no other."""

_Seen = Mapping[str, Sequence[Replica]]
"""Node → what it reports that it holds; the same object when it has reported nothing new."""


@dataclass(slots=True)
class _Record:
    """What is held against one bundle on one node."""

    times: int
    avoided: Avoided


@dataclass(slots=True)
class Avoidance:
    """Watches every replica of the fleet; times are seconds of one monotonic clock."""

    suspended: Mapping[str, str] = field(default_factory=dict[str, str])
    """Bundles that are tried nowhere new at present, each with the reason."""
    _records: dict[tuple[str, str], _Record] = field(default_factory=dict[tuple[str, str], _Record])
    """(node, digest) → what is held against it there."""
    _works_on: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    """Digest → nodes on which it was ready last."""
    _seen: dict[str, Sequence[Replica]] = field(default_factory=dict[str, Sequence[Replica]])
    _forgiven: dict[tuple[str, str], Replica] = field(
        default_factory=dict[tuple[str, str], Replica]
    )
    """(node, digest) → what it had reported when the node was told to try again."""

    def forgive(self, node: str) -> None:
        """What failed on a node until now may be tried there again, as if for the first time."""
        for key in [key for key in self._records if key[0] == node]:
            del self._records[key]
        for replica in self._seen.pop(node, ()):
            if replica.failed_count:
                self._forgiven[node, replica.digest] = replica

    def look(self, seen: _Seen, now_s: float) -> dict[str, tuple[Avoided, ...]]:
        """Node → bundles that have to keep off it at present."""
        self._forget(seen, now_s)
        recorded = {node for node, _ in self._records}
        for node, replicas in seen.items():
            if replicas is self._seen.get(node) and node not in recorded:
                continue
            self._seen[node] = replicas
            for replica in replicas:
                if replica.state is ReplicaState.READY or replica.failed_count:
                    self._take_in(node, replica, now_s)
        found = dict[str, tuple[Avoided, ...]]()
        active = Counter[str]()
        for (node, digest), record in sorted(self._records.items()):
            if now_s < record.avoided.until_s:
                found[node] = (*found.get(node, ()), record.avoided)
                active[digest] += 1
        self.suspended = {
            digest: f"its bundle failed on {nodes} nodes and works on {self._count(digest)}"
            for digest, nodes in active.items()
            if nodes >= max(SUSPENDED_AT, self._count(digest))
        }
        return found

    def _count(self, digest: str) -> int:
        return len(self._works_on.get(digest, ()))

    def _take_in(self, node: str, replica: Replica, now_s: float) -> None:
        key = node, replica.digest
        failed_count, crashed_count = self._held_against(key, replica)
        record = self._records.get(key)
        if not replica.failed_count:  # it serves, and has for a while
            self._records.pop(key, None)
        if not replica.failed_count or (record is None and replica.state is ReplicaState.READY):
            self._works_on.setdefault(replica.digest, set()).add(node)
        if record is not None and now_s < record.avoided.until_s:
            return
        crashed = crashed_count >= (CRASHED_MAX if record is None else 1)
        failed = failed_count >= (FAILED_MAX if record is None else 1)
        if crashed or failed:
            self._works_on.get(replica.digest, set[str]()).discard(node)
            before = record.times if record else 0
            times = 1 + (before if self._count(replica.digest) else self._times(replica.digest))
            until_s = now_s + _lasts_s(times, crashed=crashed)
            self._records[key] = _Record(times, _avoided(replica, until_s, crashed=crashed))

    def _held_against(self, key: tuple[str, str], replica: Replica) -> tuple[int, int]:
        """Failures in a row, and crashes among them, that nobody has forgiven."""
        before = self._forgiven.get(key)
        if before is None:
            return replica.failed_count, replica.crashed_count
        if replica.failed_count < before.failed_count:  # it has lasted, or came anew
            del self._forgiven[key]
            return replica.failed_count, replica.crashed_count
        return (
            replica.failed_count - before.failed_count,
            replica.crashed_count - before.crashed_count,
        )

    def _times(self, digest: str) -> int:
        """Where it works nowhere, it is the bundle: a first time on another node is none."""
        of_it = (one.times for (_, which), one in self._records.items() if which == digest)
        return max(of_it, default=0)

    def _forget(self, seen: _Seen, now_s: float) -> None:
        for key, record in list(self._records.items()):
            if now_s - record.avoided.until_s > LONGEST_S:
                del self._records[key]
        gone = self._seen.keys() - seen.keys()
        if not gone:
            return
        for node in gone:
            del self._seen[node]
        self._forgiven = {key: one for key, one in self._forgiven.items() if key[0] not in gone}
        works_on = {digest: nodes & seen.keys() for digest, nodes in self._works_on.items()}
        self._works_on = {digest: nodes for digest, nodes in works_on.items() if nodes}


def _lasts_s(times: int, *, crashed: bool) -> float:
    first_s = CRASHED_FIRST_S if crashed else FIRST_S
    return min(first_s * 2.0 ** min(times - 1, _DOUBLINGS_MAX), LONGEST_S)


def _avoided(replica: Replica, until_s: float, *, crashed: bool) -> Avoided:
    often = f"it failed here {replica.failed_count} times in a row"
    if crashed:
        often += f", and Triton died {replica.crashed_count} times while it was being loaded"
    reason = f"{often}: {replica.reason}" if replica.reason else often
    return Avoided(replica.digest, replica.deployment, reason, until_s, crashed)
