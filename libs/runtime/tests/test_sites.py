"""Many sites: what a site may do at its hub, tried by one that is up to no good; and its records.

The intruder is somebody with all rights at a site, so that its region's hub alone refuses. Each
test has the way that must work beside those that must not, or it would pass with the link down.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from busbar_messaging import provision, topology
from busbar_messaging.bucket_changes import Current, Put
from busbar_messaging.connection import BusSettings, close, connect
from busbar_messaging.topology import HUB_DOMAIN, NodeId, entry_subject
from busbar_messaging.watching import follow
from busbar_runtime.fleet import Fleet
from busbar_runtime.platform import Platform
from busbar_runtime.probes import until
from harness.at_sites import (
    DEADLINE_S,
    ELSEWHERE,
    HERE,
    HUB_API,
    NEIGHBOUR,
    REFUSED,
    SETTLE_S,
    Bus,
    asked,
    place,
    pulled,
    put,
    queue,
    read_placement,
)
from nats.aio.client import Client
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig
from nats.js.client import JetStreamContext
from nats.js.errors import Error as JetStreamError
from pydantic import SecretStr


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    running = Platform(tmp_path_factory.mktemp("sites"), parts=["bus"], sites=3)
    running.launch()
    yield running
    running.shutdown()


@pytest.fixture
async def bus(platform: Platform) -> AsyncIterator[Bus]:
    made = Bus(platform)
    yield made
    await made.close()


async def eventually(probe: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await until(probe)


async def entries(services: Client, bucket: topology.BucketSpec) -> set[str]:
    store = await services.jetstream().key_value(bucket.name)
    try:
        return set(await store.keys())
    except JetStreamError:
        return set()


async def test_a_site_pulls_the_work_of_its_own_placements_and_no_other(bus: Bus) -> None:
    """Not of another region, not of the neighbour; asked for by whatever name it could know."""
    services, intruder = await bus.service("provisioner"), await bus.intruder(HERE)
    own = await queue(services, HERE.region, "own")
    theirs = await queue(services, NEIGHBOUR.region, "theirs")
    far = await queue(services, ELSEWHERE.region, "far")
    await place(services, HERE, own=own)
    await place(services, NEIGHBOUR, theirs=theirs)
    work = topology.work_stream(HERE.region).name
    told = (await read_placement(intruder, HERE, DEADLINE_S)).replicas[0].queue
    question = b'{"batch":1,"expires":5000000000}'
    guessed = topology.sealed_queue("theirs", "0" * 32)
    ends = await asyncio.gather(
        pulled(intruder, ELSEWHERE.region, far, SETTLE_S),
        pulled(intruder, HERE.region, topology.queue_name("theirs"), SETTLE_S),
        pulled(intruder, HERE.region, guessed, SETTLE_S),
        pulled(intruder, HERE.region, "*", SETTLE_S),
        asked(intruder, f"{HUB_API}.CONSUMER.NAMES.{work}", b"{}", SETTLE_S),
        asked(intruder, f"{HUB_API}.CONSUMER.LIST.{work}", b"{}", SETTLE_S),
        asked(intruder, f"{HUB_API}.CONSUMER.INFO.{work}.{theirs}", b"", SETTLE_S),
        asked(intruder, f"{HUB_API}.STREAM.INFO.{work}", b"", SETTLE_S),
        asked(intruder, f"{HUB_API}.STREAM.MSG.GET.{work}", b'{"seq":2}', SETTLE_S),
        asked(intruder, f"{HUB_API}.DIRECT.GET.{work}", b'{"seq":2}', SETTLE_S),
        # an acknowledgement may ask for the next work in the same breath
        asked(
            intruder,
            f"{topology.LEAF_ACKS}.{work}.{guessed}.1.1.1.1.0",
            b"+NXT" + question,
            SETTLE_S,
        ),
        asked(intruder, f"{topology.ACKS}.{work}.{theirs}.1.1.1.1.0", b"+NXT" + question, SETTLE_S),
        read_placement(intruder, NEIGHBOUR, SETTLE_S),
        return_exceptions=True,
    )

    assert [one for one in ends if not isinstance(one, (*REFUSED, TimeoutError))] == []
    assert told == own
    served = await pulled(intruder, HERE.region, told, DEADLINE_S)
    assert served.data == HERE.region.encode()
    await intruder.publish(served.reply.replace(topology.ACKS, topology.LEAF_ACKS), b"+ACK")
    jetstream = services.jetstream()

    async def taken() -> bool:
        return (await jetstream.consumer_info(work, own)).num_ack_pending == 0

    await eventually(taken)
    waiting = await jetstream.consumer_info(work, theirs)
    assert waiting.num_pending == 1
    assert waiting.delivered is not None
    assert waiting.delivered.consumer_seq == 0
    left = await jetstream.stream_info(topology.work_stream(ELSEWHERE.region).name)
    assert left.state.messages == 1


async def test_a_sites_server_is_told_the_name_of_no_queue(bus: Bus) -> None:
    """A hub tells it what is listened to there, so that it knows what to pass on."""
    services, watcher = await bus.service("provisioner"), await bus.of_the_system(NEIGHBOUR)
    name = await queue(services, NEIGHBOUR.region, "whispered")
    marker = f"{topology.sourced_subject(NEIGHBOUR.region, NEIGHBOUR.site)}.marker"
    await services.subscribe(marker)  # after the queue, and on the same way
    await services.flush()
    heard: set[str] = set()

    async def told() -> bool:
        answer = await watcher.request("$SYS.REQ.SERVER.PING.LEAFZ", b'{"subscriptions":true}')
        for leaf in json.loads(answer.data)["data"]["leafs"]:
            heard.update(leaf["subscriptions_list"])
        return marker in heard

    await eventually(told)
    assert [subject for subject in heard if name in subject] == []
    assert f"{topology.LEAF_ACKS}.>" in heard


@pytest.mark.parametrize(
    "bucket", [topology.LEASES, topology.CLAIMS, topology.NODES], ids=lambda b: b.name
)
async def test_a_site_shows_signs_of_its_own_life_only(
    bus: Bus, bucket: topology.BucketSpec
) -> None:
    services, intruder = await bus.service("provisioner"), await bus.intruder(HERE)
    await put(intruder, bucket, HERE.key)
    for other in (ELSEWHERE, NEIGHBOUR):
        with pytest.raises(REFUSED):
            await put(intruder, bucket, other.key, SETTLE_S)

    there = await entries(services, bucket)
    assert HERE.key in there
    assert not {ELSEWHERE.key, NEIGHBOUR.key} & there


async def test_a_site_shapes_no_stream_and_no_consumer_of_the_hub(bus: Bus) -> None:
    services, intruder = await bus.service("provisioner"), await bus.intruder(HERE)
    hub = intruder.jetstream(domain=HUB_DOMAIN, timeout=SETTLE_S)
    work = topology.work_stream(HERE.region).name
    own = await queue(services, HERE.region, "shaped")
    attempts: list[Awaitable[Any]] = [
        hub.add_stream(StreamConfig(name="MINE", subjects=["mine.>"])),
        hub.update_stream(topology.work_stream(HERE.region).config(1)),
        hub.purge_stream("USAGE"),
        hub.delete_stream("USAGE"),
        hub.delete_msg("USAGE", 1),
        hub.delete_consumer(work, own),
        hub.add_consumer(work, ConsumerConfig(durable_name="mine", ack_policy=AckPolicy.EXPLICIT)),
        hub.stream_info("USAGE"),
    ]
    before = {name.config.name for name in await services.jetstream().streams_info()}
    ends = await asyncio.gather(*attempts, return_exceptions=True)

    assert [type(end) for end in ends if not isinstance(end, REFUSED)] == []
    assert {name.config.name for name in await services.jetstream().streams_info()} == before
    allowed = intruder.jetstream(domain=HUB_DOMAIN, timeout=DEADLINE_S)
    models = await allowed.stream_info(f"OBJ_{topology.MODELS.name}")
    assert models.config.name == f"OBJ_{topology.MODELS.name}"


async def test_a_site_reads_its_own_placements_and_no_other_entry(bus: Bus) -> None:
    services, intruder = await bus.service("provisioner"), await bus.intruder(HERE)
    jetstream = services.jetstream()
    for bucket, key in [
        (topology.PLACEMENTS, HERE.key),
        (topology.PLACEMENTS, ELSEWHERE.key),
        (topology.KEYS, "secret"),
        (topology.TENANTS, "secret"),
    ]:
        await (await jetstream.key_value(bucket.name)).put(key, b"x")
    hub = intruder.jetstream(domain=HUB_DOMAIN, timeout=SETTLE_S)
    heard = await intruder.subscribe(intruder.new_inbox())

    def reading(name: str, subject: str) -> ConsumerConfig:
        return ConsumerConfig(
            name=name,
            deliver_subject=heard.subject,
            filter_subject=subject,
            ack_policy=AckPolicy.NONE,
        )

    ends = await asyncio.gather(
        hub.add_consumer("KV_keys", reading("a", "$KV.keys.secret")),
        hub.add_consumer("KV_tenants", reading("b", "$KV.tenants.>")),
        hub.add_consumer("KV_placements", reading("c", "$KV.placements.>")),
        hub.add_consumer("KV_placements", reading("d", f"$KV.placements.{ELSEWHERE.key}")),
        hub.get_msg("KV_keys", seq=1),
        hub.get_last_msg("KV_keys", "$KV.keys.secret", direct=True),
        return_exceptions=True,
    )
    allowed = intruder.jetstream(domain=HUB_DOMAIN, timeout=DEADLINE_S)
    await allowed.add_consumer("KV_placements", reading("e", f"$KV.placements.{HERE.key}"))
    first = await heard.next_msg(DEADLINE_S)

    assert [type(end) for end in ends if not isinstance(end, REFUSED)] == []
    assert first.subject == f"$KV.placements.{HERE.key}"
    with pytest.raises(NatsTimeoutError):
        await heard.next_msg(SETTLE_S / 2)


async def test_a_node_holds_its_name_at_the_hub_and_reads_no_other_lease(bus: Bus) -> None:
    node = await bus.node(HERE)
    hub = node.jetstream(domain=HUB_DOMAIN, timeout=SETTLE_S)
    entry, revision = entry_subject(topology.LEASES, HERE.key, HUB_DOMAIN), 0

    async def write(over: int) -> int:
        headers = {"Nats-Expected-Last-Subject-Sequence": str(over)}
        return (await node.jetstream().publish(entry, b"held", headers=headers)).seq

    def reading(key: str) -> ConsumerConfig:
        inbox, subject = node.new_inbox(), f"$KV.{topology.LEASES.name}.{key}"
        name = inbox.rpartition(".")[2]
        return ConsumerConfig(
            name=name, deliver_subject=inbox, filter_subject=subject, ack_policy=AckPolicy.NONE
        )

    changes = follow(node, topology.LEASES.name, keys=HERE.key, domain=HUB_DOMAIN)
    async with asyncio.timeout(DEADLINE_S), contextlib.aclosing(changes):
        async for change in changes:
            if isinstance(change, Current):
                break
            revision = change.revision if isinstance(change, Put) else 0
    first = await write(revision)
    with pytest.raises(JetStreamError, match="wrong last sequence"):
        await write(revision)
    second = await write(first)
    await hub.add_consumer(f"KV_{topology.LEASES.name}", reading(topology.PULSE))

    assert second > first > revision
    for other in (NEIGHBOUR.key, ELSEWHERE.key, ">"):
        with pytest.raises(REFUSED):
            await hub.add_consumer(f"KV_{topology.LEASES.name}", reading(other))


async def test_a_site_hears_what_is_said_to_it_and_nothing_else(bus: Bus) -> None:
    services, intruder = await bus.service("provisioner"), await bus.intruder(HERE)
    own = [
        topology.cancel_subject(HERE.key),
        f"{topology.site_inbox(HERE.region, HERE.site)}.n1.answer",
    ]
    others = [
        "_INBOX.gateway.answer",
        topology.reply_subject("g1"),
        topology.cancel_subject(NEIGHBOUR.key),
        f"{topology.node_inbox(NEIGHBOUR)}.answer",
        topology.usage_subject("r1", "g1"),
        topology.work_subject("r1", "chat"),
        topology.CREDIT_LEASES,
        f"{topology.provisioner_inbox(NEIGHBOUR.region, NEIGHBOUR.site)}.answer",
    ]
    own_records = topology.sourced_subject(HERE.region, HERE.site) + "."  # on their way to the hub
    heard: list[str] = []

    async def note(message: Any) -> None:
        if not message.subject.startswith(own_records):
            heard.append(message.subject)

    for pattern in ("_INBOX.>", "busbar.>", "$KV.>", "$JS.API.>", *own, *others):
        await intruder.subscribe(pattern, cb=note)
    await intruder.flush()

    async def reached() -> bool:
        for subject in [*others, *own]:
            await services.publish(subject, b"x")
        await services.flush()
        return {subject for subject in heard if subject in own} == set(own)

    await eventually(reached)
    assert set(heard) <= set(own)


async def test_a_site_publishes_answers_and_facts_of_its_own_only(bus: Bus) -> None:
    services, intruder = await bus.service("provisioner"), await bus.intruder(HERE)
    heard: list[str] = []

    async def note(message: Any) -> None:
        heard.append(message.subject)

    for pattern in ("busbar.>", "_INBOX.gateway.>", "_INBOX.provisioner.>", "_INBOX.site.>"):
        await services.subscribe(pattern, cb=note)
    await services.flush()
    allowed = [
        topology.reply_subject("g1"),
        topology.event_subject("node", "seen"),
        topology.dead_letter_subject("node", "work"),
        f"{topology.provisioner_inbox(HERE.region, HERE.site)}.answer",
    ]
    refused = [
        topology.usage_subject("r1", "g1"),
        topology.measured_subject(NEIGHBOUR),
        topology.work_subject("r1", "chat"),
        topology.event_subject("billing", "seen"),
        topology.dead_letter_subject("billing", "usage"),
        topology.CREDIT_LEASES,
        topology.CREDIT_RECALLS,
        topology.cancel_subject(NEIGHBOUR.key),
        f"{topology.sourced_subject(NEIGHBOUR.region, NEIGHBOUR.site)}.x",
        f"{topology.provisioner_inbox(NEIGHBOUR.region, NEIGHBOUR.site)}.answer",
        f"{topology.node_inbox(NEIGHBOUR)}.answer",
        "_INBOX.gateway.answer",
    ]

    async def arrived() -> bool:
        for subject in [*refused, *allowed]:
            await intruder.publish(subject, b"x")
        await intruder.flush()
        return set(allowed) <= set(heard)

    await eventually(arrived)
    assert set(heard) & set(refused) == set()


async def test_a_node_does_at_its_site_what_is_its_own(bus: Bus) -> None:
    node = await bus.node(HERE)
    local = node.jetstream(timeout=SETTLE_S)
    await put(node, topology.LEASES, HERE.key)
    stored = await local.publish(topology.measured_subject(HERE), b"a record", timeout=DEADLINE_S)
    assert stored.domain == topology.site_domain(HERE.region, HERE.site)

    other = NodeId(HERE.region, HERE.site, "n2")
    stream = topology.site_measured_stream(HERE.region, HERE.site, 1).name
    ends = await asyncio.gather(
        put(node, topology.LEASES, other.key, SETTLE_S),
        local.publish(topology.measured_subject(other), b"not its own", timeout=SETTLE_S),
        local.purge_stream(stream),
        local.stream_info(stream),
        local.add_stream(StreamConfig(name="MINE", subjects=["mine.>"])),
        return_exceptions=True,
    )
    assert [type(end) for end in ends if not isinstance(end, REFUSED)] == []


async def test_nobody_connects_without_credentials(platform: Platform) -> None:
    found = platform.endpoints
    urls = [found["nats"], *[site["nats"] for site in found["sites"].values()]]

    def guess(url: str) -> BusSettings:
        secret = SecretStr("a guess")
        settings = BusSettings(nats_url=url, nats_user="gateway", nats_password=secret)
        return settings.model_copy(update={"bus_connect_timeout": timedelta(seconds=3)})

    ends = await asyncio.gather(
        *[connect(guess(url), "nobody") for url in urls], return_exceptions=True
    )

    assert ["refuses user 'gateway'" in str(end) for end in ends] == [True] * len(urls), ends


async def stored_ids(hub: JetStreamContext, node: NodeId) -> list[str]:
    """The ids of a site's cost records at the hub, in its order."""
    name = topology.measured_stream(node.region, node.site).name
    state = (await hub.stream_info(name)).state
    return [
        ((await hub.get_msg(name, seq=number)).headers or {})["Nats-Msg-Id"]
        for number in range(max(1, state.first_seq), state.last_seq + 1)
    ]


async def record(client: Client, node: NodeId, ids: list[str]) -> None:
    for one in ids:
        await client.jetstream(timeout=5).publish(
            topology.measured_subject(node), one.encode(), headers={"Nats-Msg-Id": one}
        )


@pytest.mark.parametrize(
    ("node", "after_count"), [(ELSEWHERE, 2), (NEIGHBOUR, 7)], ids=["behind", "overtaken"]
)
async def test_records_under_numbers_that_were_read_before_are_not_lost(
    bus: Bus, node: NodeId, after_count: int
) -> None:
    services, agent = await bus.service("provisioner"), await bus.node(node)
    hub = services.jetstream()
    before, after = [f"b{n}" for n in range(5)], [f"a{n}" for n in range(after_count)]
    await record(agent, node, before)

    async def read() -> bool:
        return await stored_ids(hub, node) == before

    await eventually(read)
    client = await connect(
        bus.settings.model_copy(
            update={"nats_inbox": topology.provisioner_inbox(node.region, node.site)}
        ),
        "disk",
    )
    site = client.jetstream(domain=topology.site_domain(node.region, node.site))
    config = (await site.stream_info(topology.site_measured_stream(*site_of(node), 1).name)).config
    await site.delete_stream(config.name or "")  # as a disk that comes back empty
    await site.add_stream(config)
    await close(client)
    await record(agent, node, after)

    report = await provision.apply(services, bus.settings)

    assert report.assets[f"site {node.region}/{node.site}"] == "updated"

    async def all_there() -> bool:
        return set(await stored_ids(hub, node)) == {*before, *after}

    await eventually(all_there)
    await record(agent, node, ["later"])

    async def later_too() -> bool:
        return "later" in await stored_ids(hub, node)

    await eventually(later_too)
    again = await provision.apply(services, bus.settings)
    assert again.assets[f"site {node.region}/{node.site}"] == "ok"


def site_of(node: NodeId) -> tuple[str, str]:
    return node.region, node.site


@pytest.mark.parametrize("sites", [-1, 1, 9])
def test_a_number_of_sites_that_cannot_be_is_refused(sites: int) -> None:
    with pytest.raises(ValueError, match=f"{sites} sites: give 2 to 8, or none"):
        Fleet.of(sites)


def test_a_region_has_one_server_or_three() -> None:
    one, three = Fleet.of(2), Fleet.of(1, 3)

    assert [hub.name for hub in one.hubs] == ["nats", "nats-r2"]
    assert [hub.name for hub in three.hubs_of("r1")] == ["nats", "nats-2", "nats-3"]
    assert len(set(three.listeners)) == len(three.listeners)
    with pytest.raises(ValueError, match=r"2 servers a region: give one of \(1, 3\)"):
        Fleet.of(2, 2)
    with pytest.raises(ValueError, match="needs sites"):
        Fleet.of(0, 3)


async def test_a_wrong_number_of_sites_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="1 sites: give 2 to 8, or none"):
        Platform(tmp_path, parts=["bus"], sites=1).launch()
