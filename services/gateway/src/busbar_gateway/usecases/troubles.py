"""What goes wrong at single nodes without a good answer between, for the scheduler to judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

_NODES_MAX = 4096


class NodeTroubles:
    """Counts in a row, by node; a node that answers is forgotten."""

    def __init__(self) -> None:
        self._lost = Counter[str]()
        self._garbled = Counter[str]()

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
        for node in sorted({*self._lost, *self._garbled}):
            yield node, self._lost[node], self._garbled[node]

    @staticmethod
    def _note(counter: Counter[str], node: str) -> None:
        if node and (node in counter or len(counter) < _NODES_MAX):
            counter[node] += 1
