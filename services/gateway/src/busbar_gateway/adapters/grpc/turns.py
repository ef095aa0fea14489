"""Who on a stream is to be answered before whom, and who is charged before that."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

CHARGED_AHEAD_MAX = 1024
"""Answers, of all streams, that are charged and wait for those before them. Each has one of the
4096 slots for charges under way, and a client that does not read keeps it waiting for ever."""


@dataclass(slots=True, eq=False)
class Turn:
    """The place of one request in its stream's line."""

    come: asyncio.Event = field(default_factory=asyncio.Event)
    charged_ahead: bool = False


@dataclass(slots=True)
class ChargedAhead:
    """How many answers are charged and wait for their turn, on all streams of a gateway."""

    count: int = 0

    async def may_charge(self, turn: Turn) -> None:
        """Return when this answer may be charged: now, or with its turn where too many wait."""
        if turn.come.is_set():
            return
        if self.count >= CHARGED_AHEAD_MAX:
            await turn.come.wait()
            return
        turn.charged_ahead = True
        self.count += 1

    def left(self, turn: Turn) -> None:
        """This one waits no more."""
        if turn.charged_ahead:
            turn.charged_ahead = False
            self.count -= 1


class Turns:
    """The requests of one stream; each has its turn when all before it have left."""

    def __init__(self) -> None:
        self._line: deque[Turn] = deque()

    def join(self) -> Turn:
        """Go to the end of the line."""
        turn = Turn()
        self._line.append(turn)
        self._call_first()
        return turn

    def leave(self, turn: Turn) -> None:
        """Make way, from wherever in the line; who left need not wait. Idempotent."""
        if turn in self._line:
            self._line.remove(turn)
        turn.come.set()
        self._call_first()

    def _call_first(self) -> None:
        if self._line:
            self._line[0].come.set()
