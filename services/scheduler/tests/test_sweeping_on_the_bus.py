"""Removing bundles, and sweeping the model store, on a real one."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from busbar_errors import NotFound, Unavailable
from busbar_messaging.bundles.contents import bundle_object, chunk_object
from busbar_messaging.bundles.store import BundleStore
from busbar_scheduler.adapters.buckets import Buckets
from busbar_scheduler.adapters.declarations import Declarations
from busbar_scheduler.adapters.model_stock import ModelStock
from busbar_scheduler.domain.sweeping import Ages, Stored, Sweep
from busbar_scheduler.usecases.keep_bundles import Sweeper
from harness.bundles import Made
from nats.aio.client import Client
from nats.aio.msg import Msg
from scheduler_harness import Bus, Running, bundle, scheduling

AT_ONCE = Ages(unused_ms=0, condemned_ms=0)


@dataclass(frozen=True)
class Store:
    """A scheduler, its model store, and a sweeper for which everything is old enough."""

    running: Running
    stock: ModelStock
    store: BundleStore
    sweeper: Sweeper

    async def sweep(self) -> Sweep:
        decided, _ = await self.sweeper.sweep()
        return decided

    async def names(self) -> set[str]:
        return {one.name for one in (await self.stock.inventory()).objects}

    async def delete(self, made: Made) -> Any:
        return await self.running.api.delete(f"/admin/v1/bundles/{made.digest}")

    async def missing(self, made: Made) -> int:
        asked = {"sha256": [one.hex() for one in made.chunks]}
        answer = await self.running.api.post("/admin/v1/chunks/missing", json=asked)
        return len(answer.json()["sha256"])


class Behind(ModelStock):
    """Reads a copy of the model store that ends at `copied`: that of a server just restarted."""

    copied = sys.maxsize

    async def _infos(self, last: int) -> AsyncGenerator[Msg]:
        async for message in super()._infos(last):
            if message.metadata.sequence.stream <= self.copied:
                yield message


@asynccontextmanager
async def storing(
    bus: Bus, stock: Callable[[Client], ModelStock] = ModelStock
) -> AsyncIterator[Store]:
    async with scheduling(bus) as running, bus.connected("scheduler") as client:
        view = running.scheduler.view
        store, swept = BundleStore(client), stock(client)
        sweeper = Sweeper(swept, store, Declarations(Buckets(client), view), view, AT_ONCE)
        yield Store(running, swept, store, sweeper)


def names_of(made: Made) -> set[str]:
    return {bundle_object(made.digest), *map(chunk_object, made.chunks)}


async def test_a_removed_bundle_goes_and_what_it_shares_with_another_stays(bus: Bus) -> None:
    gone, kept = bundle("gone"), bundle("kept")
    async with storing(bus) as at:
        await at.running.push(gone)
        await at.running.push(kept)
        before = await at.sweep()
        removed = await at.delete(gone)
        condemned, deleted, again = [await at.sweep() for _ in range(3)]
        there = await at.names()
        read = [await at.store.chunk(one) for one in kept.chunks]
        with pytest.raises(NotFound):
            await at.store.bundle(gone.digest)
        contents = (await at.stock.inventory()).unclaimed

    assert removed.status_code == 204
    assert (before.condemn, before.delete) == ([], [])
    assert {one.name for one in condemned.condemn} == names_of(gone) - names_of(kept)
    assert {one.name for one in deleted.delete} == names_of(gone) - names_of(kept)
    assert (again.condemn, again.delete) == ([], [])
    assert there == names_of(kept)
    assert set(read) == set(kept.chunks.values())
    assert contents == ()


async def test_a_bundle_is_kept_while_a_deployment_may_go_back_to_it(bus: Bus) -> None:
    first, second, third = (bundle("m", memory_mb=mib) for mib in (64, 65, 66))
    async with storing(bus) as at:
        for made in (first, second, third):
            await at.running.push(made)
        await at.running.put("m", {"bundle": first.digest})
        served = await at.delete(first)
        await at.running.put("m", {"bundle": second.digest})
        before = await at.delete(first)
        listed = {
            one["digest"]: one["uses"]
            for one in (await at.running.get("/admin/v1/bundles"))["items"]
        }
        await at.running.put("m", {"bundle": third.digest})
        after = await at.delete(first)
        twice = await at.delete(first)
        left = await at.sweep()

    assert [one.status_code for one in (served, before, after, twice)] == [409, 409, 204, 404]
    assert "deployment m serves it" in served.json()["error"]["message"]
    assert "deployment m may go back to it" in before.json()["error"]["message"]
    assert listed[first.digest] == ["deployment m may go back to it"]
    assert listed[third.digest] == []
    assert {one.name for one in left.condemn} == names_of(first) - names_of(second)


async def test_what_is_condemned_is_sent_again_and_then_stays(bus: Bus) -> None:
    made = bundle()
    async with storing(bus) as at:
        await at.running.send(made)
        condemned = await at.sweep()
        readable = [await at.store.chunk(one) for one in made.chunks]
        missing = await at.missing(made)
        await at.running.push(made)
        await at.sweep()
        there = await at.names()
        lacking = await at.missing(made)

    assert len(condemned.condemn) == missing == len(made.chunks)
    assert set(readable) == set(made.chunks.values())
    assert there == names_of(made)
    assert lacking == 0


async def test_a_bundle_noted_after_its_chunks_were_condemned_spares_them(bus: Bus) -> None:
    """As by a push that had found them there before."""
    made = bundle()
    async with storing(bus) as at:
        await at.running.push(made)
        stock = await at.stock.inventory()
        for one in stock.objects:
            await at.stock.condemn(one)
        spared = await at.sweep()
        lacking = await at.missing(made)
        there = await at.names()

    assert {one.name for one in spared.spare} == names_of(made) == there
    assert (spared.delete, lacking) == ([], 0)


@pytest.mark.parametrize(
    "write", [ModelStock.delete, ModelStock.condemn], ids=["delete", "condemn"]
)
async def test_a_chunk_that_was_stored_anew_meanwhile_stays(
    bus: Bus, write: Callable[[ModelStock, Stored], Awaitable[None]]
) -> None:
    made = bundle()
    async with storing(bus) as at:
        await at.running.send(made)
        seen = (await at.stock.inventory()).objects
        await at.running.send(made)
        for one in seen:
            await write(at.stock, one)
        read = [await at.store.chunk(one) for one in made.chunks]
        lacking = await at.missing(made)

    assert set(read) == set(made.chunks.values())
    assert lacking == 0


async def test_a_chunk_that_another_sweeper_spares_meanwhile_keeps_its_content(bus: Bus) -> None:
    made = bundle()
    async with storing(bus) as at:
        await at.running.send(made)
        for one in (await at.stock.inventory()).objects:
            await at.stock.condemn(one)
        seen = (await at.stock.inventory()).objects
        for one in seen:
            await at.stock.spare(one)
        for one in seen:
            await at.stock.delete(one)
        read = [await at.store.chunk(one) for one in made.chunks]

    assert set(read) == set(made.chunks.values())


async def test_nothing_is_deleted_while_a_list_of_chunks_cannot_be_read(bus: Bus) -> None:
    made, stray = bundle("damaged"), bundle("stray")
    async with storing(bus) as at:
        await at.running.push(made)
        await at.running.send(stray)
        listed = next(
            one
            for one in (await at.stock.inventory()).objects
            if one.name == bundle_object(made.digest)
        )
        await at.stock.delete(listed)
        with pytest.raises(Unavailable, match="push it again"):
            await at.sweep()
        before = await at.names()
        await at.running.push(made)
        after = await at.sweep()

    assert before == (names_of(made) | names_of(stray)) - {
        bundle_object(made.digest),
        bundle_object(stray.digest),
    }
    assert {one.name for one in after.condemn} == set(map(chunk_object, stray.chunks)) - names_of(
        made
    )


async def test_content_that_a_broken_write_left_is_deleted(bus: Bus) -> None:
    made = bundle()
    async with storing(bus) as at:
        await at.running.push(made)
        await at.running.client.jetstream().publish("$O.models.C.leftbehind", b"content")
        decided, contents = await at.sweeper.sweep()
        after = await at.stock.inventory()
        there = await at.missing(made)

    assert (contents, after.unclaimed) == (["leftbehind"], ())
    assert (decided.condemn, there) == ([], 0)


async def test_content_that_a_lagging_copy_does_not_describe_is_not_taken_for_unclaimed(
    bus: Bus,
) -> None:
    made = bundle()
    async with storing(bus, Behind) as at:
        assert isinstance(at.stock, Behind)
        await at.running.send(made)
        at.stock.copied = max(one.revision for one in (await at.stock.inventory()).objects)
        with_all = await at.stock.inventory()
        await at.running.send(made)
        with pytest.raises(Unavailable, match="lags behind"):
            await at.sweeper.sweep(dry_run=True)
        at.stock.copied = sys.maxsize
        caught_up = await at.stock.inventory()

    assert with_all.unclaimed == caught_up.unclaimed == ()
    assert len(caught_up.objects) == len(made.chunks)


async def test_a_sweep_by_command_respects_the_ages_and_a_dry_run_changes_nothing(bus: Bus) -> None:
    made = bundle()
    async with storing(bus) as at:
        await at.running.send(made)
        young = await at.running.api.post("/admin/v1/chunks/sweep", json={})
        sweeper = replace(at.sweeper)
        dry, _ = await sweeper.sweep(dry_run=True)
        lacking = await at.missing(made)
        empty = await at.running.api.post("/admin/v1/chunks/sweep", json={"dry_run": "perhaps"})

    assert young.json()["young"]["objects"] == len(made.chunks)
    assert young.json()["condemned"] == young.json()["deleted"] == {"objects": 0, "bytes": 0}
    assert len(dry.condemn) == len(made.chunks)
    assert lacking == 0
    assert empty.status_code == 422
