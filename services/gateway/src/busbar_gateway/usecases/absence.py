"""Nodes that the bus has lost, which is told long before their silence says it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from busbar_gateway.usecases.pending import Lost, Pending

QUIET_S = 0.3
"""A node that says nothing for this long about work in hand is asked for."""
_ASK_EVERY_S = 0.2
_ABSENT_TIMES = 2
"""So often in a row, so that an agent that connects anew is not taken for a dead one."""
_RECONNECTING_S = 3.0
"""How long after an absence of the bus itself agents may still be on their way back."""

AskFor = Callable[[str, Callable[[], None]], None]
"""Calls back if the server knows nobody who listens for what the node is told."""


@dataclass(slots=True)
class _Asked:
    at: float
    absent_times: int = 0
    answered: bool = False
    """Whether the bus has said since then that it knows nobody."""


@dataclass(slots=True)
class AbsentNodes:
    """Asks the bus for nodes that have gone quiet, and ends the attempts of those it has lost."""

    ask_for: AskFor
    _not_before: float = 0.0
    _asked: dict[str, _Asked] = field(default_factory=dict[str, _Asked])

    def bus_was_away(self, now: float) -> None:
        """Agents may need longer than we to connect again."""
        self._not_before = now + _RECONNECTING_S
        self._asked.clear()

    def look(self, works: Iterable[Pending], now: float) -> None:
        """Ask for every node that has gone quiet about some of these."""
        quiet: dict[str, list[Pending]] = {}
        for work in works:
            if _quiet(work, now):
                quiet.setdefault(work.attempts.node, []).append(work)
        for node in self._asked.keys() - quiet.keys():
            del self._asked[node]
        if now < self._not_before:
            return
        for node, its_works in quiet.items():
            self._ask(node, its_works, now)

    def _ask(self, node: str, works: list[Pending], now: float) -> None:
        asked = self._asked.get(node)
        if asked is None:
            asked = self._asked[node] = _Asked(now)
        elif now - asked.at < _ASK_EVERY_S:
            return
        if not asked.answered:
            asked.absent_times = 0
        asked.at, asked.answered = now, False
        attempts = [(work, work.attempts.current, work.attempts.last_sign) for work in works]

        def absent() -> None:
            asked.absent_times += 1
            asked.answered = True
            if asked.absent_times < _ABSENT_TIMES:
                return
            for work, attempt, last_sign in attempts:
                if (work.attempts.current, work.attempts.last_sign) == (attempt, last_sign):
                    work.end(Lost(f"{node} is gone"))

        self.ask_for(node, absent)


def _quiet(work: Pending, now: float) -> bool:
    """Whether its node has begun it and says nothing, and another attempt could take over."""
    attempts = work.attempts
    begun = attempts.last_sign and attempts.node and work.outcome is None
    if not begun or now - attempts.last_sign < QUIET_S:
        return False
    return not attempts.delivering or work.call.resumable is not None
