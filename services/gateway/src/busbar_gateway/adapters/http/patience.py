"""One timer that may be put off any number of times for next to nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Patience:
    """Calls back once the time last given has passed.

    A request would arm and disarm several timers; here that only notes a time,
    and the one real timer looks at the note when it fires.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._fires = 0.0
        self._due = 0.0
        self._then: Callable[[], object] | None = None

    def give(self, seconds: float, then: Callable[[], object]) -> None:
        """Call `then` in `seconds`, in place of whatever was to be called."""
        self._due = self._loop.time() + seconds
        self._then = then
        if self._timer is None or self._fires > self._due:
            self._arm()

    def given(self, then: Callable[[], object]) -> bool:
        """Whether `then` is what will be called."""
        return self._then == then

    def take_back(self) -> None:
        """Call nothing."""
        self._then = None

    def close(self) -> None:
        """Call nothing ever again."""
        self._then = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fires = self._due
        self._timer = self._loop.call_at(self._due, self._fire)

    def _fire(self) -> None:
        self._timer = None
        then = self._then
        if then is None:
            return
        if self._loop.time() < self._due:
            self._arm()
            return
        self._then = None
        then()
