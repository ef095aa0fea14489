"""Waiting for something to become true, with a deadline instead of a sleep."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.25


async def eventually(
    probe: Callable[[], Awaitable[T]],
    *,
    within_s: float,
    what: str,
    until: Callable[[T], bool] = bool,
) -> T:
    """Call `probe` until `until(answer)` holds; return the answer.

    Raises AssertionError, naming `what` and the last answer, after `within_s` seconds.
    """
    deadline = time.monotonic() + within_s
    pause_s = _FIRST_PAUSE_S
    while True:
        answer = await probe()
        if until(answer):
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {within_s} s; last seen: {answer!r}")
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)


def says(ask: Callable[[], str], text: str, *, within_s: float = 10.0) -> bool:
    """Call `ask` until its answer contains `text`; False when it did not in time."""

    async def look() -> bool:
        return text in await asyncio.to_thread(ask)

    try:
        return asyncio.run(eventually(look, within_s=within_s, what=text))
    except AssertionError:
        return False
