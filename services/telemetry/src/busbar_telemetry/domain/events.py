"""The last facts that services announced."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Event:
    """A fact, in words for the operator."""

    sequence: int
    at_unix_ms: int
    service: str
    fact: str
    severity: Severity
    subject: str
    text: str
    repeats: int = 1


@dataclass(frozen=True, slots=True)
class Charges:
    """Charges that billing announced as posted; amounts by currency."""

    count: int
    amount_nanos: dict[str, int]


class RecentEvents:
    """The newest events, at most `capacity`; one that is delivered again counts once."""

    def __init__(self, capacity: int = 200) -> None:
        self._events: deque[Event] = deque(maxlen=capacity)
        self.charges_count = 0
        self.charged_nanos: dict[str, int] = {}
        self._last_charge_sequence = 0

    def add(self, event: Event) -> None:
        """Remember an event; one that says again what the last one said takes its place."""
        if any(known.sequence == event.sequence for known in self._events):
            return
        last = self._events[-1] if self._events else None
        if last and _says(last) == _says(event):
            event = replace(event, repeats=last.repeats + 1)
            self._events.pop()
        self._events.append(event)

    def charged(self, sequence: int, charges: Charges) -> None:
        """Count charges: there are too many of them to list each."""
        if sequence <= self._last_charge_sequence:
            return
        self._last_charge_sequence = sequence
        self.charges_count += charges.count
        for currency, nanos in charges.amount_nanos.items():
            self.charged_nanos[currency] = self.charged_nanos.get(currency, 0) + nanos

    def newest_first(self, limit: int = 50) -> list[Event]:
        """The last `limit` events."""
        ordered: Iterable[Event] = sorted(self._events, key=lambda event: -event.sequence)
        return list(ordered)[:limit]


def _says(event: Event) -> tuple[str, str, str, str]:
    return event.service, event.fact, event.subject, event.text
