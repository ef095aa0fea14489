"""How many answers each tenant keeps, so that none of them keeps another's out.

A tenant may take as much of a room as it leaves free for all others: alone it
has half, and with n that fill it together each has 1/(n + 1), and as much is
free for whoever comes next (Choudhury and Hahne 1998, dynamic queue length
thresholds with alpha = 1). Where they come one after the other, each finds half
of what the one before it left, until what the first ones kept ends.
"""

from __future__ import annotations

from collections import defaultdict

ENTRY_BYTES = 1024
"""Counted for an answer beside its size, so that the smallest ones are bounded in number, too."""
_SLOT_S = 3600


def share_left(own: int, taken: int, room: int) -> int:
    """What is left to a tenant that took `own` of what all `taken` of a room; negative when the
    others need some of it back."""
    return room - taken - own


class KeptAnswers:
    """What is kept of each tenant's answers, as they are told of, to the hour."""

    def __init__(self, room_bytes: int, kept_for_s: float) -> None:
        self._room_bytes = room_bytes
        self._kept_for_s = kept_for_s
        self._slots: dict[int, defaultdict[str, int]] = {}
        self._own: defaultdict[str, int] = defaultdict(int)
        self._taken = 0

    def add(self, tenant_id: str, size_bytes: int, stored_unix_s: float) -> None:
        """An answer was kept."""
        cost = size_bytes + ENTRY_BYTES
        slot = self._slots.setdefault(int(stored_unix_s // _SLOT_S), defaultdict(int))
        slot[tenant_id] += cost
        self._own[tenant_id] += cost
        self._taken += cost

    def left_bytes(self, tenant_id: str, now_unix_s: float) -> int:
        """How much more of this tenant may be kept."""
        self._expire(now_unix_s)
        return share_left(self._own.get(tenant_id, 0), self._taken, self._room_bytes)

    def wait_s(self, tenant_id: str, now_unix_s: float) -> float:
        """After how long the first that is kept of this tenant ends; 0 when nothing is."""
        ends = [
            self._end_s(slot) for slot, by_tenant in self._slots.items() if tenant_id in by_tenant
        ]
        return max(0.0, min(ends, default=now_unix_s) - now_unix_s)

    def _expire(self, now_unix_s: float) -> None:
        for slot in [slot for slot in self._slots if self._end_s(slot) <= now_unix_s]:
            for tenant_id, cost in self._slots.pop(slot).items():
                self._taken -= cost
                self._own[tenant_id] -= cost
                if not self._own[tenant_id]:
                    del self._own[tenant_id]

    def _end_s(self, slot: int) -> float:
        return (slot + 1) * _SLOT_S + self._kept_for_s
