"""What goes wrong at single nodes without a good answer between, for the scheduler to judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from time import monotonic

_NODES_MAX = 4096
_QUEUES_MAX = 4096
HEARD_WITHIN_S = 10.0
"""Who was heard about a queue's work so shortly before still takes of it, as far as is known."""
FORGOTTEN_AFTER_S = 600.0
"""Who said nothing about a queue's work for so long has left it, and is forgotten when another
comes: replicas move, and a gateway lives for months."""
HELD_FOR_S = 3.0
"""Suspicion that nothing adds to ends before the scheduler acts on it: what a node that died left
unsaid, others would have to answer for, where the last request was among it."""


class NodeTroubles:
    """Counts in a row, by node; a node that answers is forgotten.

    Work that was taken by a node that never said a word names nobody. It is held against each
    node that lately spoke for that queue and has not since, and only once another node is heard:
    where none is, it is this gateway that is deaf.
    """

    def __init__(self, monotonic: Callable[[], float] = monotonic) -> None:
        self._monotonic = monotonic
        self._lost = Counter[str]()
        self._garbled = Counter[str]()
        self._unheard = Counter[str]()
        self._held_at: dict[str, float] = {}
        """By node that was not heard since, when something was last held against it."""
        self._doubted = Counter[str]()
        """As `_unheard`, until another node is heard."""
        self._heard_at: dict[str, dict[str, float]] = {}
        """By queue and node, when it last said anything about work of that queue."""

    def heard(self, node: str, queue: str, now: float) -> None:
        """Anything came from the node; `queue` is empty where nobody knows the work any more."""
        if self._doubted or self._held_at:
            self._believe(node, now)
        if not queue:
            return
        nodes = self._heard_at.get(queue)
        if nodes is None:
            if len(self._heard_at) >= _QUEUES_MAX:
                self._heard_at.clear()
            nodes = self._heard_at[queue] = {}
        if node not in nodes:
            over = now - FORGOTTEN_AFTER_S
            gone = [one for one, at in nodes.items() if at < over and one not in self._held_at]
            for one in gone:
                del nodes[one]
        if node in nodes or len(nodes) < _NODES_MAX:
            nodes[node] = now

    def swallowed(self, queue: str, region: str, since: float) -> None:
        """Work of the queue, published then, was taken in the region and nobody spoke about it."""
        here = f"{region}."
        for node, at in self._heard_at.get(queue, {}).items():
            lately = since - HEARD_WITHIN_S < at < since
            if node.startswith(here) and (lately or (at < since and node in self._held_at)):
                self._note(self._doubted, node)

    def lost(self, node: str) -> None:
        """The node began an attempt and fell silent about it."""
        self._note(self._lost, node)

    def garbled(self, node: str) -> None:
        """The node's answer could not be read."""
        self._note(self._garbled, node)

    def spoke(self, node: str) -> None:
        """A piece, an end or a failure came from the node."""
        if self._lost:
            self._lost.pop(node, None)

    def answered(self, node: str) -> None:
        """The node's answer was delivered whole."""
        if self._garbled:
            self._garbled.pop(node, None)

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        """Node, attempts lost in a row, answers garbled in a row."""
        over = self._monotonic() - HELD_FOR_S
        for node in [node for node, at in self._held_at.items() if at < over]:
            self._unheard.pop(node, None)
        for node in sorted({*self._lost, *self._garbled, *self._unheard}):
            yield node, self._lost[node] + self._unheard[node], self._garbled[node]

    def _believe(self, node: str, now: float) -> None:
        """The node is not silent, and we are not deaf: hold it against the others."""
        for held in (self._unheard, self._held_at, self._doubted):
            held.pop(node, None)
        for other, count in self._doubted.items():
            if other in self._held_at or len(self._held_at) < _NODES_MAX:
                self._unheard[other] += count
                self._held_at[other] = now
        self._doubted.clear()

    @staticmethod
    def _note(counter: Counter[str], node: str) -> None:
        if node and (node in counter or len(counter) < _NODES_MAX):
            counter[node] += 1
