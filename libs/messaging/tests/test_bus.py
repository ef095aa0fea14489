"""The bus library against a real NATS server that is killed, restarted and emptied."""

from __future__ import annotations

import asyncio
import shutil
import signal
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from busbar_errors import Unavailable
from busbar_messaging import provision, topology, watching
from busbar_messaging.bucket_changes import Change, Current, Deleted, Put
from busbar_messaging.connection import (
    BusSettings,
    ConnectionLog,
    close,
    connect,
    publish_durably,
)
from busbar_runtime.pytest_plugin import NatsServer
from harness.polling import eventually
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError
from nats.js.errors import KeyNotFoundError
from pydantic import SecretStr
from structlog.testing import capture_logs

DEADLINE_S = 15


@pytest.fixture
def settings(nats_server: NatsServer) -> provision.ProvisionSettings:
    return provision.ProvisionSettings(
        nats_url=nats_server.url,
        nats_user="provisioner",
        nats_password=nats_server.credentials["provisioner"],  # pyright: ignore[reportArgumentType]
    )


@pytest.fixture
async def client(settings: provision.ProvisionSettings) -> AsyncIterator[Client]:
    connected = await connect(settings, "test")
    await provision.apply(connected, settings)
    yield connected
    await close(connected)


def user_settings(nats_server: NatsServer, user: str) -> BusSettings:
    password = nats_server.credentials[user]
    return BusSettings(nats_url=nats_server.url, nats_user=user, nats_password=password)  # pyright: ignore[reportArgumentType]


@asynccontextmanager
async def following(client: Client, bucket: str) -> AsyncIterator[list[Change]]:
    """Everything `follow` reports while the block runs."""
    seen: list[Change] = []

    async def collect() -> None:
        async with aclosing(watching.follow(client, bucket)) as changes:
            async for change in changes:
                seen.append(change)  # noqa: PERF401 - the list is read while it grows

    task = asyncio.create_task(collect())
    yield seen
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until_seen(seen: list[Change], wanted: Change) -> None:
    async def there() -> bool:
        return wanted in seen

    await eventually(there, within_s=DEADLINE_S, what=f"{wanted} is reported")


async def test_applying_twice_changes_nothing_and_verifies(
    client: Client, settings: provision.ProvisionSettings
) -> None:
    again = await provision.apply(client, settings)

    assert set(again.assets.values()) == {"ok"}
    assert (await provision.verify(client, settings)).right


async def test_a_missing_stream_is_found_and_made_again(
    client: Client, settings: provision.ProvisionSettings
) -> None:
    await client.jetstream().delete_stream(topology.DLQ.name)

    report = await provision.verify(client, settings)

    assert not report.right
    assert report.assets["stream DLQ"] == "missing"
    assert (await provision.apply(client, settings)).assets["stream DLQ"] == "created"


async def test_bounds_of_a_consumer_that_differ_are_found_and_put_right(
    client: Client, settings: provision.ProvisionSettings
) -> None:
    spec = topology.BILLING_USAGE
    asset = f"consumer {spec.stream}/{spec.durable}"
    other = spec.config()
    other.max_deliver, other.ack_wait = 7, 1.0
    await client.jetstream().add_consumer(spec.stream, other)

    assert (await provision.verify(client, settings)).assets[asset] == (
        "differs in ack_wait, max_deliver"
    )
    assert (await provision.apply(client, settings)).assets[asset] == "updated"
    assert (await provision.verify(client, settings)).right


async def test_a_follower_sees_everything_then_each_change(client: Client) -> None:
    store = await client.jetstream().key_value(topology.KEYS.name)
    await store.put("before", b"1")
    async with following(client, topology.KEYS.name) as seen:
        await until_seen(seen, Current())
        first = await store.put("after", b"2")
        await store.delete("before")
        await until_seen(seen, Deleted("before"))

    assert seen.index(Current()) > 0
    assert Put("after", b"2", first) in seen


async def test_a_follower_survives_a_killed_server_and_reports_what_vanished(
    client: Client, settings: provision.ProvisionSettings, nats_server: NatsServer
) -> None:
    jetstream = client.jetstream()
    leases = await jetstream.key_value(topology.LEASES.name)
    routes = await jetstream.key_value(topology.ROUTES.name)
    await leases.put("r1.s1.gone", b"x")
    kept = await routes.put("kept", b"y")
    async with (
        following(client, topology.LEASES.name) as lease_changes,
        following(client, topology.ROUTES.name) as route_changes,
    ):
        await until_seen(lease_changes, Current())
        await until_seen(route_changes, Current())
        await nats_server.platform.kill("nats", signal.SIGKILL)

        async def provisioned() -> bool:
            with suppress(NatsError, JetStreamError, TimeoutError):
                return (await provision.apply(client, settings)).right
            return False

        await eventually(provisioned, within_s=DEADLINE_S, what="the bus is back")
        await until_seen(lease_changes, Deleted("r1.s1.gone"))
        added = await routes.put("added", b"z")
        await until_seen(route_changes, Put("added", b"z", added))

    assert route_changes.count(Put("kept", b"y", kept)) >= 1


async def test_a_bucket_whose_last_entry_was_removed_is_read_to_its_end(client: Client) -> None:
    bucket = await client.jetstream().key_value(topology.DEPLOYMENTS.name)
    first = await bucket.put("first", b"1")
    await bucket.put("last", b"2")
    await client.jetstream().purge_stream("KV_deployments", subject="$KV.deployments.last")

    async with following(client, topology.DEPLOYMENTS.name) as seen:
        await until_seen(seen, Current())
    await client.jetstream().purge_stream("KV_deployments")

    assert seen[:-1] == [Put("first", b"1", first)]


async def test_a_follower_of_a_busy_bucket_reads_it_again_after_a_reconnect(
    client: Client,
) -> None:
    store = await client.jetstream().key_value(topology.LEASES.name)
    async with following(client, topology.LEASES.name) as seen:
        await until_seen(seen, Current())
        client.stats["reconnects"] += 1  # as after a blip that the server did not notice

        async def read_again_although_never_idle() -> bool:
            await store.put("r1.s1.busy", b"x")
            return seen.count(Current()) > 1

        await eventually(
            read_again_although_never_idle, within_s=DEADLINE_S, what="the bucket is read again"
        )

    assert seen.count(Current()) == 2


async def test_a_follower_of_headers_is_told_of_each_message_once_whatever_dies(
    client: Client, settings: provision.ProvisionSettings, nats_server: NatsServer
) -> None:
    jetstream, many = client.jetstream(), 3_000
    subject = topology.entry_subject(topology.IDEMPOTENCY, "{}", "")
    for number in range(many):
        await client.publish(subject.format(number), b"x" * 7, headers={"N": str(number)})
    await client.flush()
    seen: list[tuple[str | None, int]] = []

    async def has(count: int) -> bool:
        return len(seen) >= count

    following = asyncio.create_task(collect_headers(client, seen))
    await eventually(lambda: has(many), within_s=DEADLINE_S, what="all that was there is told")
    await nats_server.platform.kill("nats", signal.SIGKILL)

    async def stored() -> bool:
        with suppress(NatsError, JetStreamError, TimeoutError):
            await jetstream.publish(subject.format("0"), b"", headers={"N": "again"})
            return True
        return False

    await eventually(stored, within_s=DEADLINE_S, what="the bus is back")
    await eventually(lambda: has(many + 1), within_s=DEADLINE_S, what="the new one is told")
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)

    assert seen == [*((str(number), 7) for number in range(many)), ("again", 0)]


async def collect_headers(client: Client, seen: list[tuple[str | None, int]]) -> None:
    """The header N and the size of each; "anew" where the bucket was made anew."""
    async with aclosing(watching.follow_headers(client, topology.IDEMPOTENCY.name)) as told:
        async for one in told:
            anew = isinstance(one, watching.Anew)
            seen.append(("anew", 0) if anew else (one.headers.get("N"), one.size_bytes))


async def test_a_follower_of_headers_begins_at_the_beginning_of_a_bucket_that_was_made_anew(
    client: Client, settings: provision.ProvisionSettings
) -> None:
    jetstream, bucket = client.jetstream(), topology.IDEMPOTENCY
    subject = topology.entry_subject(bucket, "key", "")
    for _ in range(3):
        await jetstream.publish(subject, b"", headers={"N": "before"})
    seen: list[tuple[str | None, int]] = []

    async def last_is(what: str) -> bool:
        return seen[-1:] == [(what, 0)]

    following = asyncio.create_task(collect_headers(client, seen))
    await eventually(lambda: last_is("before"), within_s=DEADLINE_S, what="what was there is told")
    seen.clear()
    await jetstream.delete_stream(f"KV_{bucket.name}")
    await provision.apply(client, settings)
    await jetstream.publish(subject, b"", headers={"N": "after"})
    await eventually(lambda: last_is("after"), within_s=DEADLINE_S, what="what is there is told")
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)

    assert seen == [("anew", 0), ("after", 0)]


@pytest.mark.parametrize("after", [1, 2, 3])
async def test_a_follower_of_headers_begins_anew_when_the_bus_went_back_to_a_snapshot(
    client: Client, nats_server: NatsServer, tmp_path: Path, after: int
) -> None:
    bucket, platform = topology.IDEMPOTENCY, nats_server.platform
    store, snapshot = platform.home.data / "nats", tmp_path / "nats"
    await client.jetstream().purge_stream(f"KV_{bucket.name}")
    await keep(client, "before")
    await platform.stop("nats")
    shutil.copytree(store, snapshot)
    await platform.start("nats")
    for number in range(2):
        await keep(client, f"lost {number}")
    async with aclosing(watching.follow_headers(client, bucket.name)) as told:
        lost = [await name_of_next(told) for _ in range(3)]
        await platform.stop("nats")
        shutil.rmtree(store)
        shutil.copytree(snapshot, store)
        await platform.start("nats")
        for number in range(after):
            await keep(client, f"after {number}")
        found = [await name_of_next(told) for _ in range(2 + after)]

    assert lost == ["before", "lost 0", "lost 1"]
    assert found == ["anew", "before", *(f"after {number}" for number in range(after))]


async def keep(client: Client, name: str) -> None:
    """Store an entry under its own key, however long the bus is away."""
    subject = topology.entry_subject(topology.IDEMPOTENCY, name.replace(" ", "-"), "")
    headers = {"N": name, "Nats-Msg-Id": uuid.uuid4().hex}

    async def kept() -> bool:
        with suppress(NatsError, JetStreamError, TimeoutError):
            await client.jetstream(timeout=2).publish(subject, b"", headers=headers)
            return True
        return False

    await eventually(kept, within_s=DEADLINE_S, what=f"{name} is stored")


async def name_of_next(told: AsyncGenerator[watching.Stored | watching.Anew]) -> str | None:
    async with asyncio.timeout(DEADLINE_S):
        one = await anext(told)
    return "anew" if isinstance(one, watching.Anew) else one.headers.get("N")


async def test_a_durable_publish_outlives_a_restart_and_is_stored_once(
    client: Client, nats_server: NatsServer
) -> None:
    jetstream = client.jetstream()
    subject = topology.usage_subject("r1", "g1")
    await nats_server.platform.kill("nats", signal.SIGKILL)
    message_id = uuid.uuid4().hex

    first = await publish_durably(
        jetstream, subject, b"x", message_id=message_id, give_up_after=timedelta(seconds=15)
    )
    again = await publish_durably(
        jetstream, subject, b"x", message_id=message_id, give_up_after=timedelta(seconds=15)
    )

    assert again.duplicate
    assert again.seq == first.seq


async def test_a_publish_that_nobody_stores_fails_within_its_time(client: Client) -> None:
    with pytest.raises(Unavailable, match="did not acknowledge in time"):
        await publish_durably(
            client.jetstream(),
            "nobody.stores.this",
            b"x",
            message_id="1",
            give_up_after=timedelta(seconds=0.3),
        )


@pytest.mark.parametrize(
    ("first_answer", "within_s"),
    [
        (b'{"error":{"code":409,"err_code":10158,"description":"duplicate in process"}}', 2.0),
        (b"", 0.1),
    ],
    ids=["still-being-stored", "lost"],
)
async def test_a_publish_is_repeated_until_the_stream_says_that_it_has_it(
    client: Client, first_answer: bytes, within_s: float
) -> None:
    asked: list[Msg] = []

    async def stream(message: Msg) -> None:
        asked.append(message)
        if answer := first_answer if len(asked) == 1 else b'{"stream":"S","seq":7}':
            await message.respond(answer)

    subject = f"stand-in.{uuid.uuid4().hex}"
    subscription = await client.subscribe(subject, cb=stream)
    stored = await publish_durably(
        client.jetstream(),
        subject,
        b"x",
        message_id="1",
        give_up_after=timedelta(seconds=10),
        answer_within=timedelta(seconds=within_s),
    )
    await subscription.unsubscribe()

    ids = [(message.headers or {})["Nats-Msg-Id"] for message in asked]
    assert stored.seq == 7
    assert ids[:2] == ["1", "1"]
    assert set(ids) == {"1"}


async def test_an_answer_counts_that_comes_when_it_was_sent_again(client: Client) -> None:
    """A stream that always takes longer than one is willing to wait before sending again."""
    asked: list[Msg] = []

    async def slow_stream(message: Msg) -> None:
        asked.append(message)
        if len(asked) == 4:
            await asked[1].respond(b'{"stream":"S","seq":7}')

    subject = f"stand-in.{uuid.uuid4().hex}"
    subscription = await client.subscribe(subject, cb=slow_stream)
    stored = await publish_durably(
        client.jetstream(),
        subject,
        b"x",
        message_id="1",
        give_up_after=timedelta(seconds=10),
        answer_within=timedelta(seconds=0.05),
    )
    await subscription.unsubscribe()

    assert stored.seq == 7


async def test_who_is_cancelled_while_it_connects_leaves_no_connection_open(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, connect_plainly = asyncio.Queue[Client](), Client.connect

    async def connect_deafly(self: Client, *servers: Any, **options: Any) -> None:
        """Swallows a cancellation that comes together with the answer."""
        await connect_plainly(self, *servers, **options)
        made.put_nowait(self)
        with suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(Client, "connect", connect_deafly)
    connecting = asyncio.create_task(connect(user_settings(nats_server, "provisioner"), "test"))
    client = await asyncio.wait_for(made.get(), DEADLINE_S)
    connecting.cancel()
    await asyncio.wait([connecting], timeout=20)

    assert connecting.cancelled()
    assert client.is_closed


async def test_closing_a_connection_is_no_news(nats_server: NatsServer) -> None:
    with capture_logs() as said:
        kept = await connect(user_settings(nats_server, "provisioner"), "kept")
        await close(kept)

    assert kept.is_closed
    assert said == []


async def test_no_server_is_a_clear_error() -> None:
    settings = BusSettings(
        nats_url="nats://127.0.0.1:1",
        nats_user="u",
        nats_password="p",  # pyright: ignore[reportArgumentType]
        bus_connect_timeout=timedelta(seconds=0.5),
    )

    with pytest.raises(Unavailable, match=r"no NATS server at nats://127\.0\.0\.1:1"):
        await connect(settings, "test")


async def test_a_wrong_password_is_not_called_a_missing_server(nats_server: NatsServer) -> None:
    right = user_settings(nats_server, "operator")
    wrong = right.model_copy(
        update={
            "nats_password": SecretStr("a guess"),
            "bus_connect_timeout": timedelta(seconds=3),
        }
    )

    with pytest.raises(Unavailable, match="refuses user 'operator': the password"):
        await connect(wrong, "test")


@pytest.mark.parametrize("user", ["gateway", "agent", "billing", "scheduler", "telemetry"])
async def test_only_the_provisioner_may_change_streams(
    client: Client, nats_server: NatsServer, user: str
) -> None:
    service = await connect(user_settings(nats_server, user), user)
    for verb in ("DELETE", "PURGE", "UPDATE"):
        with pytest.raises(Exception, match=r"(?i)timeout|no responders"):
            await service.request(f"$JS.API.STREAM.{verb}.USAGE", b"{}", timeout=0.3)
    await close(service)

    assert (await client.jetstream().stream_info("USAGE")).config.name == "USAGE"


async def test_a_service_cannot_write_anothers_bucket(
    client: Client, nats_server: NatsServer
) -> None:
    gateway = await connect(user_settings(nats_server, "gateway"), "gateway")
    await gateway.publish("$KV.keys.forged", b"let me in")
    await gateway.flush()
    await close(gateway)

    store = await client.jetstream().key_value(topology.KEYS.name)
    with pytest.raises(KeyNotFoundError):
        await store.get("forged")


async def test_an_error_that_comes_again_and_again_is_said_once_until_something_changes() -> None:
    says = ConnectionLog()
    with capture_logs() as said:
        for _ in range(100):
            await says.error(ConnectionRefusedError("nobody there"))
        await says.error(TimeoutError())
        await says.reconnected()
        await says.error(TimeoutError())

    assert [each["event"] for each in said] == [
        "bus error",
        "bus error",
        "bus reconnected",
        "bus error",
    ]
    assert said[1]["repeats_unsaid"] == 99
