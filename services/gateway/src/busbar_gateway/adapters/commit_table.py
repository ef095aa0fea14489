"""Which charges are being committed, kept in a file that survives a kill of the process.

A charge is made durable before its answer is delivered. Whoever dies in between
leaves its slot occupied, and the next start takes that charge back. The file is
memory-mapped: what was written stays when the process is killed. (When the
machine itself loses power the customer may have been charged for an answer that
did not arrive; see docs/decisions.)
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from busbar_errors import Unavailable

_MAGIC = b"busbar-commits-1"
_SLOT_BYTES = 192
_SLOTS = 4096
_ID_BYTES = 16
_TENANT_AT = 2 + _ID_BYTES
TENANT_BYTES_MAX = _SLOT_BYTES - _TENANT_AT
_FREE, _OCCUPIED = 0, 1


@dataclass(frozen=True, slots=True)
class Slot:
    """One charge between commit and delivery."""

    index: int
    request_id: bytes
    tenant_id: str


class CommitTable:
    """The slots of one gateway process. Raises OSError when the file cannot be used."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = len(_MAGIC) + _SLOT_BYTES * _SLOTS
            os.truncate(file, size)
            self._map = mmap.mmap(file, size)  # keeps a duplicate, and with it the lock
        finally:
            os.close(file)
        self._map[: len(_MAGIC)] = _MAGIC
        self._free: list[int] = []
        self.left_over: list[Slot] = []
        for slot in self._read():
            if slot.request_id:
                self.left_over.append(slot)
            else:
                self._free.append(slot.index)

    @property
    def occupied_count(self) -> int:
        """Slots in use, those left over from an earlier run included."""
        return _SLOTS - len(self._free)

    def claim(self, request_id: bytes, tenant_id: str) -> Slot:
        """Occupy a slot; raise Unavailable when all are occupied."""
        if not self._free:
            raise Unavailable("too many charges are waiting to become durable")
        tenant = tenant_id.encode()
        if len(tenant) > TENANT_BYTES_MAX:
            raise ValueError(f"tenant id {tenant_id!r} is longer than {TENANT_BYTES_MAX} bytes")
        index = self._free.pop()
        at = len(_MAGIC) + index * _SLOT_BYTES
        self._map[at + 1 : at + _TENANT_AT + len(tenant)] = (
            bytes((len(tenant),)) + request_id + tenant
        )
        self._map[at] = _OCCUPIED
        return Slot(index, request_id, tenant_id)

    def clear(self, slot: Slot) -> None:
        """Free the slot: delivered, or taken back."""
        self._map[len(_MAGIC) + slot.index * _SLOT_BYTES] = _FREE
        self._free.append(slot.index)

    def close(self) -> None:
        """Let go of the file; what is occupied stays so."""
        self._map.close()

    def _read(self) -> Iterator[Slot]:
        for index in reversed(range(_SLOTS)):
            at = len(_MAGIC) + index * _SLOT_BYTES
            entry = self._map[at : at + _SLOT_BYTES]
            if entry[0] == _OCCUPIED:
                tenant = entry[_TENANT_AT : _TENANT_AT + entry[1]].decode(errors="replace")
                yield Slot(index, entry[2:_TENANT_AT], tenant)
            else:
                yield Slot(index, b"", "")
