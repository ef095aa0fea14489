"""How records stand in a journal: numbered, each with a checksum, in two halves that take turns.

A half is used again once everything in it is stored elsewhere. What stands behind the newest record
of a half is of an earlier turn and carries lower numbers, so reading stops there. Numbers may be
missing: those of records that found no room.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

MARK_BYTES = 64
"""In front of both halves: the first number that is not stored elsewhere."""
_FRAME = struct.Struct("<IIQ")  # length, CRC-32 of what follows, number
_MARK = struct.Struct("<QI")
_NUMBER = struct.Struct("<Q")
_CLOSED_FROM = 0.75


def frame(number: int, record: bytes) -> bytes:
    """A record as it is written."""
    numbered = _NUMBER.pack(number) + record
    return struct.pack("<II", len(record), zlib.crc32(numbered)) + numbered


def mark(number: int) -> bytes:
    """Says that everything before this number is stored elsewhere."""
    return _MARK.pack(number, zlib.crc32(_NUMBER.pack(number)))


def read(journal: bytes) -> list[tuple[int, bytes]]:
    """The records that are not stored elsewhere, in order; damaged ones end their half."""
    number, checksum = _MARK.unpack_from(journal) if len(journal) >= MARK_BYTES else (0, 0)
    first = number if checksum == zlib.crc32(_NUMBER.pack(number)) else 0
    middle = MARK_BYTES + (len(journal) - MARK_BYTES) // 2
    halves = [*_read(journal[MARK_BYTES:middle]), *_read(journal[middle:])]
    return sorted((number, record) for number, record in halves if number >= first)


def _read(half: bytes) -> Iterator[tuple[int, bytes]]:
    at, newest = 0, 0
    while at + _FRAME.size <= len(half):
        length, checksum, number = _FRAME.unpack_from(half, at)
        end = at + _FRAME.size + length
        if number <= newest or end > len(half):
            return
        if zlib.crc32(half[at + 8 : end]) != checksum:
            return
        yield number, half[at + _FRAME.size : end]
        at, newest = end, number


@dataclass(slots=True)
class Halves:
    """Where the next record goes."""

    half_bytes: int
    _active: int = 0
    _used: list[int] = field(default_factory=lambda: [0, 0])
    _last: list[int] = field(default_factory=lambda: [0, 0])
    """The newest number in each half."""

    @property
    def closed(self) -> bool:
        """Whether so little room is left that nothing new may be begun."""
        full = self._used[self._active] >= _CLOSED_FROM * self.half_bytes
        return full and self._used[1 - self._active] > 0

    def place(self, size_bytes: int) -> int | None:
        """The place of the next frame in the file; None when there is no room."""
        if self._used[self._active] + size_bytes > self.half_bytes:
            if self._used[1 - self._active] or size_bytes > self.half_bytes:
                return None
            self._active = 1 - self._active
        return MARK_BYTES + self._active * self.half_bytes + self._used[self._active]

    def written(self, number: int, size_bytes: int) -> None:
        """The frame of this record stands in its place; what does not, leaves that to the next."""
        self._used[self._active] += size_bytes
        self._last[self._active] = number

    def stored(self, until: int) -> None:
        """Everything before this number is stored elsewhere."""
        for half in (0, 1):
            if self._last[half] < until:
                self._used[half] = 0
