"""Requests of several callers as one: which go together, and how tensors are joined and cut.

A row is one element of the first dimension of a batchable model's tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from busbar_node_agent.domain.tensors import TensorMalformed, element_bytes, end_of_texts

BYTES_MAX = 256 * 1024
"""Of all inputs of a group: what a call saves is nothing beside what moving more than that costs.
"""
DIMENSIONS_MAX = 16
"""Of a tensor that is looked at; no model has as many."""
TEXTS_MAX = 1024
"""Of a BYTES tensor, whose elements are found by walking them: 0.2 ms, in which all else waits."""


@dataclass(frozen=True, slots=True)
class Batching:
    """How a model may be asked for several callers at once."""

    rows_max: int
    """Of one call."""
    instances: int = 1
    """How many calls the model works on at the same time."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that may go with others of the same form."""

    form: bytes
    """All that must be equal: everything but its id, its rows and its data."""
    rows: int
    contents: tuple[bytes, ...]
    """Raw data of each input."""
    request_id: str = ""

    @property
    def size_bytes(self) -> int:
        """Of its data."""
        return sum(map(len, self.contents))


def groups(asks: Sequence[Ask | None], batching: Batching) -> list[list[int]]:
    """Which of `asks` go together, by index, each once; None goes alone.

    No more than `batching.rows_max` rows and BYTES_MAX bytes in a group of several, in the order
    of arrival, and none so large that an instance of the model would idle for it.
    """
    members_max = ceil(len(asks) / batching.instances)
    made: list[list[int]] = []
    open_: dict[bytes, tuple[list[int], int, int]] = {}
    for index, ask in enumerate(asks):
        if ask is None:
            made.append([index])
            continue
        group, rows, size_bytes = open_.get(ask.form, ([], 0, 0))
        rows, size_bytes = rows + ask.rows, size_bytes + ask.size_bytes
        full = rows > batching.rows_max or size_bytes > BYTES_MAX or len(group) >= members_max
        if not group or full:
            group, rows, size_bytes = [], ask.rows, ask.size_bytes
            made.append(group)
        group.append(index)
        open_[ask.form] = (group, rows, size_bytes)
    return made


def joined(asks: Sequence[Ask]) -> list[bytes]:
    """Raw data of each input for all rows of `asks`, which have the same form."""
    return [b"".join(parts) for parts in zip(*(ask.contents for ask in asks), strict=True)]


def holds(datatype: str, shape: Sequence[int], raw: bytes) -> bool:
    """Whether `raw` is a tensor of that shape to the byte, so that others' may follow it."""
    try:
        cut(datatype, shape, raw, shape[:1])
    except TensorMalformed:
        return False
    return True


def cut(datatype: str, shape: Sequence[int], raw: bytes, rows: Sequence[int]) -> list[bytes]:
    """The data of so many rows each; raises TensorMalformed unless they use up all of `raw`."""
    if not 1 <= len(shape) <= DIMENSIONS_MAX or min(shape) < 0 or shape[0] != sum(rows):
        raise TensorMalformed(f"shape {list(shape[:DIMENSIONS_MAX])} for {sum(rows)} rows")
    per_row = prod(shape[1:])
    if datatype == "BYTES" and shape[0] * per_row > TEXTS_MAX:
        raise TensorMalformed(f"more than {TEXTS_MAX} texts")
    row_bytes = None if datatype == "BYTES" else per_row * element_bytes(datatype)
    parts: list[bytes] = []
    begin = 0
    for count in rows:
        if row_bytes is None:
            end = end_of_texts(raw, begin, count * per_row)
        else:
            end = begin + count * row_bytes
        parts.append(raw[begin:end])
        begin = end
    if begin != len(raw):
        raise TensorMalformed(f"{len(raw)} bytes for {datatype}{list(shape)}")
    return parts
