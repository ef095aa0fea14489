"""Doing what the system refuses at the moment later, as a full disk does not stay full."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

AGAIN_AFTER_S = 0.5


class Persistent:
    """An act that is done when called; where that raises OSError, again until it does not.

    Called on the event loop. Calls while it waits for another try cost nothing: an act that says
    how things are then says all of it at once.
    """

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._waits = False

    def __call__(self) -> None:
        if not self._waits:
            self._try()

    def _try(self) -> None:
        self._waits = False
        try:
            self._act()
        except OSError:
            self._waits = True
            asyncio.get_running_loop().call_later(AGAIN_AFTER_S, self._try)
