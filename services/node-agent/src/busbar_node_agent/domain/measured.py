"""Cost records on their way to the site's stream: numbered, bounded, in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

R = TypeVar("R")


@dataclass(slots=True)
class MeasuredBuffer(Generic[R]):
    """Numbers records from 1. What does not fit is dropped but keeps its number,
    so that the gap shows downstream that something was lost.
    """

    records_max: int
    batch_max: int
    dropped_count: int = 0
    _next_sequence: int = 1
    _first_held: int = 1
    _held: deque[R] = field(default_factory=deque[R])

    @property
    def next_sequence(self) -> int:
        """The number that the next record gets."""
        return self._next_sequence

    def __len__(self) -> int:
        return len(self._held)

    def add(self, record: R) -> bool:
        """Keep `record`; the oldest gives way when there is no room, then returns False."""
        self._held.append(record)
        self._next_sequence += 1
        if len(self._held) <= self.records_max:
            return True
        self._held.popleft()
        self._first_held += 1
        self.dropped_count += 1
        return False

    def batch(self) -> tuple[int, list[R]]:
        """Sequence of the first record, and up to `batch_max` records from there on."""
        count = min(self.batch_max, len(self._held))
        return self._first_held, [self._held[index] for index in range(count)]

    def stored(self, first_sequence: int, count: int) -> None:
        """The batch is in the stream; what was dropped meanwhile is not removed twice."""
        until = first_sequence + count
        while self._held and self._first_held < until:
            self._held.popleft()
            self._first_held += 1


def runs_of(records: Sequence[tuple[int, R]], most: int) -> Iterator[list[tuple[int, R]]]:
    """Numbered records, in order, in pieces without gaps of at most so many."""
    piece: list[tuple[int, R]] = []
    for number, record in records:
        if piece and (number != piece[-1][0] + 1 or len(piece) == most):
            yield piece
            piece = []
        piece.append((number, record))
    if piece:
        yield piece
