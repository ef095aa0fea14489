"""Work in the background: when it recurs, and how it is ended for certain.

One cancellation is not enough: until Python 3.12 `asyncio.wait_for` swallows one that comes
together with the answer (https://github.com/python/cpython/issues/86296), and nats-py waits that
way everywhere. Whoever then waits for the task waits for ever, and a service never stops.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

import structlog

log = structlog.get_logger()

T = TypeVar("T")

_AGAIN_S = 0.2
_GIVE_UP_S = 10.0
_EARLY_S = 0.002
"""Who wakes up this much before a beat has heard it."""


def rest_s(every_s: float) -> float:
    """Seconds until the event loop's clock shows a multiple of `every_s`.

    All that recurs in a process so recurs at once: waking up costs more than what is done then.
    """
    now = asyncio.get_running_loop().time()
    return (math.floor((now + _EARLY_S) / every_s) + 1) * every_s - now


async def end(tasks: Iterable[asyncio.Task[Any]], give_up_s: float = _GIVE_UP_S) -> None:
    """Cancel until it is obeyed; what has not ended after `give_up_s` is left, and said.

    Being cancelled meanwhile only hurries it: nothing is left running by it.
    """
    loop, running = asyncio.get_running_loop(), {task for task in tasks if not task.done()}
    until_s, hurried = loop.time() + give_up_s, False
    while running and loop.time() < until_s:
        for task in running:
            task.cancel()
        try:
            _, running = await asyncio.wait(running, timeout=_AGAIN_S)
        except asyncio.CancelledError:
            hurried, running = True, {task for task in running if not task.done()}
    if running:
        log.error("background work does not end", tasks=sorted(map(_what, running)))
    if hurried:
        raise asyncio.CancelledError


async def within(seconds: float, work: Coroutine[Any, Any, T], give_up_s: float = _GIVE_UP_S) -> T:
    """Await it for so long; raises TimeoutError, and has ended it as `end` does, when that is over.

    asyncio.timeout cancels once, and so may wait for ever.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task], timeout=seconds)
    finally:
        await end([task], give_up_s)
    if not task.done() or task.cancelled():
        raise TimeoutError
    return task.result()


async def to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await it however often this is cancelled meanwhile, as `end` does; then be cancelled.

    For what must be cleaned up behind a task, and has a bound of its own.
    """
    task, hurried = asyncio.create_task(work), False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            hurried = True
    task.result()
    if hurried:
        raise asyncio.CancelledError


async def together(*work: Coroutine[Any, Any, None]) -> None:
    """Run all of it until it is done, one fails or this is cancelled; none is left running.

    A TaskGroup cancels each of its tasks once, and so may never end.
    """
    tasks = [asyncio.create_task(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        await end(tasks)


def _what(task: asyncio.Task[Any]) -> str:
    return getattr(task.get_coro(), "__qualname__", task.get_name())
