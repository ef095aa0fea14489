"""What an earlier audit found in order and nobody has changed is not walked again.

The checks of transfers, charges and records are functions of what is digested here. So where
every seal still fits, walking its rows again would find nothing; where one does not, all is
walked from zero, which names what is wrong. Rows are sealed as they were before they were
walked: what is changed meanwhile does not fit the next time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from busbar_billing.domain.audit.seals import Content, Part, Seal, sealed

FIRST_ID = UUID(int=0)
PIECE = 5_000
"""Rows under one seal; of the database's memory about 3 MB."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows, up to the last of them or to what was asked for."""

    content: Content
    posted: Mapping[int, int] = field(default_factory=dict[int, int])
    """What they post to each account."""


class Store(Protocol):
    """The rows, and the seals."""

    async def piece(self, part: Part, after: UUID, upto: UUID, limit: int) -> Piece:
        """The next rows up to `upto`, at most `limit` of them."""
        ...

    async def kept(self) -> list[Seal]:
        """All seals, each part's in order."""
        ...

    async def keep(self, seals: Sequence[Seal]) -> None:
        """These instead of what was kept."""
        ...


@dataclass(slots=True)
class Closed:
    """What need not be walked, and what is sealed once the audit is clean."""

    marks: dict[Part, UUID] = field(default_factory=dict[Part, UUID])
    """The last id of each part that is as it was."""
    rows: dict[Part, int] = field(default_factory=dict[Part, int])
    posted: dict[int, int] = field(default_factory=dict[int, int])
    broken: Seal | None = None
    """The first that does not fit its rows: then nothing is closed."""
    candidates: list[Seal] = field(default_factory=list[Seal])

    def after(self, part: Part) -> UUID:
        """Where a walk begins."""
        return self.marks.get(part, FIRST_ID)

    @property
    def unchanged_rows(self) -> int:
        """Transfers and records that are not walked."""
        return self.rows.get(Part.JOURNAL, 0) + self.rows.get(Part.INBOX, 0)


Looked = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Seals:
    """Makes and compares seals."""

    store: Store
    key: bytes = field(repr=False)
    piece: int = PIECE

    async def look(self, upto: UUID, looked: Looked, *, full: bool = False) -> Closed:
        """Compare every seal with its rows, unless nothing is to be taken for granted, and prepare
        seals for all rows up to `upto`."""
        kept = [] if full else await self.store.kept()
        closed = await self._compare(kept, looked)
        if closed.broken:
            closed = Closed(broken=closed.broken)
        for part in Part:
            await self._prepare(part, upto, closed, looked)
        return closed

    async def keep(self, closed: Closed) -> None:
        """The audit was clean."""
        await self.store.keep(closed.candidates)

    async def _compare(self, kept: Sequence[Seal], looked: Looked) -> Closed:
        closed = Closed()
        last: dict[Part, Seal] = {}
        for seal in kept:
            part, after = seal.part, closed.after(seal.part)
            found = await self.store.piece(part, after, seal.upto, self.piece)
            if sealed(self.key, last.get(part), found.content) != seal:
                return Closed(broken=seal)
            last[part], closed.marks[part] = seal, seal.upto
            closed.rows[part] = closed.rows.get(part, 0) + seal.rows
            _add(closed.posted, found.posted)
            closed.candidates.append(seal)
            looked(seal.rows)
        return closed

    async def _prepare(self, part: Part, upto: UUID, closed: Closed, looked: Looked) -> None:
        """Seal what follows, and with it the last piece again where that is not full."""
        mine = [one for one in closed.candidates if one.part is part]
        if mine and mine[-1].rows < self.piece:
            closed.candidates.remove(mine.pop())
        before = mine[-1] if mine else None
        after = before.upto if before else FIRST_ID
        while after < upto:
            found = await self.store.piece(part, after, upto, self.piece)
            before = sealed(self.key, before, found.content)
            closed.candidates.append(before)
            after = before.upto
            if after > closed.after(part):
                looked(before.rows)


def _add(posted: dict[int, int], more: Mapping[int, int]) -> None:
    for account_id, nanos in more.items():
        posted[account_id] = posted.get(account_id, 0) + nanos
