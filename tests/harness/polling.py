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


async def stays(probe: Callable[[], Awaitable[bool]], *, for_s: float) -> bool:
    """Whether `probe()` holds now and at each look for so long."""
    until = time.monotonic() + for_s
    while await probe():
        if time.monotonic() > until:
            return True
        await asyncio.sleep(_FIRST_PAUSE_S)
    return False


TRIES = 3
"""A busy machine may stand still for a second once, and hardly three times in a row. What we do
wrong ourselves we do each time."""


async def quickest_s(measure: Callable[[], Awaitable[float]], *, under_s: float) -> float:
    """The least of some times; measures again only where it took `under_s` or longer."""
    took_s = [await measure()]
    while len(took_s) < TRIES and min(took_s) >= under_s:
        took_s.append(await measure())
    return min(took_s)


def says(ask: Callable[[], str], text: str, *, within_s: float = 30.0) -> bool:
    """Call `ask` until its answer contains `text`; False when it did not in time."""

    async def look() -> bool:
        return text in await asyncio.to_thread(ask)

    try:
        return asyncio.run(eventually(look, within_s=within_s, what=text))
    except AssertionError:
        return False
