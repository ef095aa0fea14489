"""Background work ends even when it swallows cancellations, as nats-py does on Python 3.11."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from busbar_messaging.background import end, to_its_end, together, within
from structlog.testing import capture_logs

DEADLINE_S = 5
FOR_EVER = 1_000_000


class Deaf:
    """Work that swallows so many cancellations before it obeys one."""

    def __init__(self, swallows: int) -> None:
        self._left = swallows
        self.begun = asyncio.Event()
        self.ended = False

    async def work(self) -> None:
        try:
            while True:
                await self._wait()
        finally:
            self.ended = True

    async def _wait(self) -> None:
        self.begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            if self._left == 0:
                raise
            self._left -= 1


async def started(work: Coroutine[Any, Any, None], *begun: Deaf) -> asyncio.Task[None]:
    task = asyncio.create_task(work)
    for one in begun:
        await one.begun.wait()
    return task


async def test_work_that_swallows_cancellations_is_ended_all_the_same() -> None:
    deaf = Deaf(swallows=2)
    task = await started(deaf.work(), deaf)

    async with asyncio.timeout(DEADLINE_S):
        await end([task])

    assert task.cancelled()


async def test_who_waits_for_so_long_is_told_although_the_first_cancellation_is_swallowed() -> None:
    deaf = Deaf(swallows=1)

    async def at_once() -> int:
        return 7

    waiting = asyncio.create_task(within(0.01, deaf.work()))
    await asyncio.wait([waiting], timeout=DEADLINE_S)

    assert isinstance(waiting.exception(), TimeoutError)
    assert deaf.ended
    assert await within(DEADLINE_S, at_once()) == 7


async def test_who_waits_for_what_never_ends_is_told_so_all_the_same() -> None:
    deaf = Deaf(swallows=FOR_EVER)

    try:
        with pytest.raises(TimeoutError), capture_logs() as said:
            await within(0.01, deaf.work(), give_up_s=0.5)
    finally:
        deaf._left = 0  # pyright: ignore[reportPrivateUsage]  # for the loop's own end

    assert [one["event"] for one in said] == ["background work does not end"]


async def test_what_is_cleaned_up_behind_a_task_is_not_cut_short_by_ending_it_again() -> None:
    cleaned, slow = asyncio.Event(), asyncio.Event()
    begun = asyncio.Event()

    async def clean_up() -> None:
        begun.set()
        await slow.wait()
        cleaned.set()

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await to_its_end(clean_up())

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    ending = asyncio.create_task(end([task]))
    await begun.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    slow.set()
    await ending

    assert cleaned.is_set()
    assert task.cancelled()


async def test_work_that_never_obeys_is_left_and_named() -> None:
    deaf = Deaf(swallows=FOR_EVER)
    task = await started(deaf.work(), deaf)

    with capture_logs() as logs:
        async with asyncio.timeout(DEADLINE_S):
            await end([task], give_up_s=0.3)

    assert not task.done()
    assert [entry["tasks"] for entry in logs] == [["Deaf.work"]]
    deaf._left = 0  # pyright: ignore[reportPrivateUsage]  # for the loop's own end


async def test_one_who_is_cancelled_while_ending_leaves_nothing_running() -> None:
    deaf = Deaf(swallows=2)
    task = await started(deaf.work(), deaf)
    ending = asyncio.create_task(end([task]))
    await asyncio.sleep(0)

    async with asyncio.timeout(DEADLINE_S):
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending

    assert deaf.ended


async def test_cancelling_what_runs_together_ends_every_part() -> None:
    parts = Deaf(swallows=1), Deaf(swallows=3)
    task = await started(together(*(part.work() for part in parts)), *parts)

    async with asyncio.timeout(DEADLINE_S):
        await end([task])

    assert task.cancelled()
    assert all(part.ended for part in parts)


async def test_a_part_that_fails_ends_the_others_and_says_why() -> None:
    deaf = Deaf(swallows=1)

    async def fails() -> None:
        await deaf.begun.wait()
        raise ValueError("broken")

    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(ValueError, match="broken"):
            await together(deaf.work(), fails())

    assert deaf.ended
