"""Claiming idempotency keys: one suite for the bucket and for the stand-in of the edge's tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import pytest
from busbar_gateway.adapters.http.idempotency import Store
from busbar_gateway.adapters.idempotency_store import IdempotencyStore
from busbar_gateway.domain.answer_shares import ENTRY_BYTES
from busbar_gateway.domain.failures import Unavailable
from busbar_gateway.domain.idempotency import Entry, KeptAnswer, Step, next_step
from busbar_messaging import topology
from busbar_messaging.background import end
from busbar_messaging.connection import BusSettings, close, connect
from busbar_messaging.provision import ProvisionSettings, apply
from busbar_runtime.pytest_plugin import NatsServer
from gateway_harness import OTHER_REGION, REGION, bus_settings, eventually
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemoryStore
from nats.aio.client import Client

MINE = Entry(b"f" * 32, "g1", "run-1", b"r" * 16, 1_700_000_000.5)
ANSWER = KeptAnswer(200, ((b"content-type", b"application/json"),), b"\x00\xffbody")


@pytest.fixture(params=["bucket", "memory"])
async def store(
    request: pytest.FixtureRequest, nats_server: NatsServer, provisioner: Client
) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    settings = BusSettings(**bus_settings(nats_server, "gateway"))
    client = await connect(settings, "test-idempotency")
    store = IdempotencyStore(client)
    following = asyncio.create_task(store.follow())
    yield store
    await end([following])
    await close(client)


async def test_what_was_claimed_and_kept_is_found(store: Store) -> None:
    name = uuid4().hex
    assert await store.find(name) is None
    revision = await store.claim(name, MINE, None)
    assert revision is not None
    found = await store.find(name)
    assert found is not None
    assert (found.entry, found.revision) == (MINE, revision)
    await store.keep(name, replace(MINE, answer=ANSWER), revision, "t1")

    found = await store.find(name)

    assert found is not None
    assert found.entry == replace(MINE, answer=ANSWER)


async def test_a_body_that_was_dropped_is_not_an_empty_body(store: Store) -> None:
    for body in (None, b""):
        name = uuid4().hex
        revision = await store.claim(name, MINE, None)
        assert revision is not None
        await store.keep(name, replace(MINE, answer=replace(ANSWER, body=body)), revision, "t1")
        found = await store.find(name)

        assert found is not None
        assert found.entry.answer is not None
        assert found.entry.answer.body == body


async def test_only_the_first_claim_wins(store: Store) -> None:
    name = uuid4().hex
    first = await store.claim(name, MINE, None)

    assert first is not None
    assert await store.claim(name, replace(MINE, gateway_id="g2"), None) is None


async def test_whoever_was_replaced_can_neither_keep_nor_forget(store: Store) -> None:
    name, other = uuid4().hex, replace(MINE, gateway_id="g2")
    first = await store.claim(name, MINE, None)
    assert first is not None
    second = await store.claim(name, other, first)
    assert second is not None
    with pytest.raises(Unavailable):
        await store.keep(name, replace(MINE, answer=ANSWER), first, "t1")
    await store.forget(name, first)

    found = await store.find(name)

    assert found is not None
    assert found.entry == other


async def test_a_forgotten_key_is_free_again(store: Store) -> None:
    name = uuid4().hex
    revision = await store.claim(name, MINE, None)
    assert revision is not None
    await store.forget(name, revision)

    assert await store.find(name) is None
    assert await store.claim(name, MINE, None) is not None


async def test_what_is_kept_counts_for_its_tenant_alone(store: Store) -> None:
    mine, other = uuid4().hex, uuid4().hex
    name = uuid4().hex
    revision = await store.claim(name, MINE, None)
    assert revision is not None
    large = replace(ANSWER, body=b"x" * 50_000)
    await store.keep(name, replace(MINE, answer=large), revision, mine)

    await eventually(lambda: store.left_bytes(mine) < store.left_bytes(other))

    cost = store.left_bytes(other) - store.left_bytes(mine)
    assert 50_000 + ENTRY_BYTES <= cost < 50_000 + 2 * ENTRY_BYTES
    assert 0 < store.wait_s(mine) <= 25 * 3600
    assert store.wait_s(other) == 0


async def test_what_was_lost_with_the_bucket_counts_no_more(
    nats_server: NatsServer, provisioner: Client
) -> None:
    client = await connect(BusSettings(**bus_settings(nats_server, "gateway")), "test-idempotency")
    store, tenant = IdempotencyStore(client), uuid4().hex
    following = asyncio.create_task(store.follow())

    async def keep() -> None:
        name = uuid4().hex
        revision = await store.claim(name, MINE, None)
        assert revision is not None
        await store.keep(name, replace(MINE, answer=ANSWER), revision, tenant)

    def counted() -> bool:
        return store.left_bytes(tenant) < store.left_bytes("nobody")

    await keep()
    await eventually(counted)
    await provisioner.jetstream().delete_stream(f"KV_{topology.IDEMPOTENCY.name}")
    own = bus_settings(nats_server, "provisioner")
    await apply(provisioner, ProvisionSettings(regions=[REGION, OTHER_REGION], **own))
    await eventually(lambda: not counted(), within_s=30)
    await keep()
    await eventually(counted)
    await end([following])
    await close(client)


async def test_a_failure_leaves_nothing_in_the_bucket(
    nats_server: NatsServer, provisioner: Client
) -> None:
    client = await connect(BusSettings(**bus_settings(nats_server, "gateway")), "test-idempotency")
    store, name = IdempotencyStore(client), uuid4().hex
    stream = f"KV_{topology.IDEMPOTENCY.name}"

    async def nothing() -> bool:
        found = await provisioner.jetstream().stream_info(stream, subjects_filter=f"*.*.{name}")
        return not found.state.subjects

    revision = await store.claim(name, MINE, None)
    assert revision is not None
    await store.forget(name, revision)
    await close(client)

    await eventually(nothing)


async def test_a_bus_that_is_away_is_said_in_words(
    nats_server: NatsServer, provisioner: Client
) -> None:
    client = await connect(BusSettings(**bus_settings(nats_server, "gateway")), "test-idempotency")
    store = IdempotencyStore(client)
    await close(client)

    for call in (store.find("name"), store.claim("name", MINE, None)):
        with pytest.raises(Unavailable) as refused:
            await call
        assert refused.value.reason == (
            "idempotency keys cannot be looked up now: their store does not answer; try again"
        )


@given(
    entry=st.none()
    | st.builds(
        Entry,
        st.sampled_from([b"a", b"b"]),
        st.sampled_from(["g1", "g2"]),
        st.just("run"),
        st.just(b"r"),
        st.floats(0, 100),
        st.none() | st.builds(KeptAnswer, st.just(200), st.just(()), st.none() | st.just(b"")),
    ),
    now=st.floats(0, 100),
    gone=st.booleans(),
)
def test_a_request_is_served_only_when_nobody_has_or_may_still_answer_it(
    entry: Entry | None, now: float, gone: bool
) -> None:
    step = next_step(entry, b"a", now, lambda _gateway, _run: gone)

    if entry is None:
        assert step is Step.SERVE
    elif entry.fingerprint != b"a":
        assert step is Step.CONFLICT
    elif entry.answer is not None:
        assert step is (Step.GONE if entry.answer.body is None else Step.REPLAY)
    else:
        ended = gone or now > entry.deadline_unix_s
        assert step is (Step.TAKE_OVER if ended else Step.WAIT)
