"""One leader at a time, and nothing from the one before."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from busbar_messaging import topology
from busbar_scheduler.adapters.board import Board
from busbar_scheduler.adapters.buckets import Buckets
from busbar_scheduler.adapters.fleet_view import FleetView
from busbar_scheduler.adapters.leadership import Leadership
from busbar_scheduler.domain.fleet import Assignment
from busbar_scheduler.domain.leading import Deposed
from harness.polling import eventually
from nats.aio.client import Client
from scheduler_harness import Bus, placement_of

NODE = "r1.s1.n1"
HELD = (Assignment("m", "sha256:" + "a" * 64, 4),)


def a_leader(client: Client, name: str) -> tuple[Leadership, Board]:
    """A candidate with a picture of its own that nobody updates but itself."""
    buckets = Buckets(client)
    leadership = Leadership(buckets, name)
    return leadership, Board(buckets, FleetView(client), leadership)


@contextlib.asynccontextmanager
async def campaigning(leadership: Leadership) -> AsyncIterator[None]:
    async def elected(_token: int) -> None:
        return

    task = asyncio.create_task(leadership.campaign(elected))
    try:
        yield
    finally:
        task.cancel()


async def token_of(leadership: Leadership) -> int:
    async def look() -> int | None:
        return leadership.token()

    found = await eventually(look, within_s=30, what="an election")
    assert found is not None
    return found


def never_notice(leadership: Leadership, token: int) -> None:
    """Frozen between asking whether it leads and writing: it goes on believing."""
    vars(leadership).update(_token=token, _valid_until=float("inf"))


async def test_a_leader_that_wakes_up_late_cannot_overwrite_its_successor(bus: Bus) -> None:
    async with bus.connected("scheduler") as client:
        first, first_board = a_leader(client, "first")
        second, second_board = a_leader(client, "second")
        async with campaigning(first):
            old = await token_of(first)
            await first_board.put_placement(NODE, HELD, old, 1)
        async with campaigning(second):
            # Nobody renews the first lease now; the second is elected when it has expired.
            new = await token_of(second)
            with contextlib.suppress(Exception):  # it learns of the entry by losing a race
                await second_board.put_placement(NODE, (), new, 2)
            await second_board.put_placement(NODE, (), new, 2)

            assert first.token() is None
            never_notice(first, old)
            with pytest.raises(Deposed, match=f"carries token {new}"):
                await first_board.put_placement(NODE, HELD, old, 1)
            standing = await placement_of(client, NODE)

    assert new > old
    assert standing is not None
    assert standing.fencing_token == new
    assert not standing.replicas


async def test_a_leader_that_may_have_lost_its_lease_does_not_even_try(bus: Bus) -> None:
    async with bus.connected("scheduler") as client:
        leadership, board = a_leader(client, "only")
        async with campaigning(leadership):
            token = await token_of(leadership)
        leadership.step_down()

        with pytest.raises(Deposed, match="lease ran out"):
            await board.put_placement(NODE, HELD, token, 1)


async def test_resigning_hands_over_at_once(bus: Bus) -> None:
    async with bus.connected("scheduler") as client:
        first, _ = a_leader(client, "first")
        second, _ = a_leader(client, "second")
        async with campaigning(first):
            old = await token_of(first)
        async with campaigning(second):
            await first.resign()
            # Not left to expire: either nobody holds it now, or the other one has it already.
            entry = await Buckets(client).get(topology.LEADERS.name, "scheduler")
            new = await token_of(second)

    assert entry is None or b'"second"' in entry.value
    assert new > old


async def test_who_has_resigned_does_not_stand_for_election_again(bus: Bus) -> None:
    async def elected(_token: int) -> None:
        return

    async with bus.connected("scheduler") as client:
        leadership, _ = a_leader(client, "only")
        campaign = asyncio.create_task(leadership.campaign(elected))
        await token_of(leadership)
        await leadership.resign()
        async with asyncio.timeout(30):
            await campaign  # not cancelled: that may be swallowed

    assert leadership.token() is None
