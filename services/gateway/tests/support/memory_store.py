"""An idempotency store without a bus, for the tests of the edge."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from busbar_gateway.adapters.idempotency_store import Found
from busbar_gateway.domain.answer_shares import KeptAnswers
from busbar_gateway.domain.failures import Unavailable
from busbar_gateway.domain.idempotency import Entry


@dataclass
class MemoryStore:
    """An idempotency store without a bus; the real one passes the same tests."""

    entries: dict[str, Found] = field(default_factory=dict[str, Found])
    revision: int = 0
    failure: Exception | None = None
    """Raised by the next call that would keep an answer."""
    kept: KeptAnswers = field(default_factory=lambda: KeptAnswers(1 << 30, 86400))
    unheard: set[str] = field(default_factory=set[str])
    """Calls whose next time is carried out, and its answer lost: claim, forget or keep."""

    async def find(self, name: str) -> Found | None:
        return self.entries.get(name)

    async def claim(self, name: str, entry: Entry, replaced: int | None) -> int | None:
        known = self.entries.get(name)
        if (known.revision if known else None) != replaced:
            return None
        self.revision += 1
        self.entries[name] = Found(entry, self.revision)
        self._lose_answer("keep" if entry.answer else "claim")
        return self.revision

    async def keep(self, name: str, entry: Entry, revision: int, tenant_id: str) -> None:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if await self.claim(name, entry, revision) is None:
            raise Unavailable("another gateway took this idempotency key over")
        self.kept.add(tenant_id, len(entry.answer.body or b"") if entry.answer else 0, time.time())

    def left_bytes(self, tenant_id: str) -> int:
        return self.kept.left_bytes(tenant_id, time.time())

    def wait_s(self, tenant_id: str) -> float:
        return self.kept.wait_s(tenant_id, time.time())

    async def forget(self, name: str, revision: int) -> None:
        self._lose_answer("forget")  # as if it had not even come
        known = self.entries.get(name)
        if known is not None and known.revision == revision:
            del self.entries[name]

    def _lose_answer(self, call: str) -> None:
        if call in self.unheard:
            self.unheard.remove(call)
            raise Unavailable("the bus did not answer")
