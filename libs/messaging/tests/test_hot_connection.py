"""The short way in and out of nats-py, on a real server: it fails here when nats-py changes."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest
from busbar_messaging.connection import BusSettings, close, connect
from busbar_messaging.hot_connection import UNWRITTEN_BYTES_MAX, HotConnection
from busbar_runtime.pytest_plugin import NatsServer
from harness.polling import eventually
from nats.aio.client import Client
from nats.errors import Error as NatsError
from pydantic import SecretStr


@pytest.fixture
async def client(nats_server: NatsServer) -> AsyncIterator[Client]:
    settings = BusSettings(
        nats_url=nats_server.url,
        nats_user="provisioner",
        nats_password=SecretStr(nats_server.credentials["provisioner"]),
    )
    client = await connect(settings, "test")
    yield client
    await close(client)


async def soon(holds: Callable[[], bool], what: str) -> None:
    async def probe() -> bool:
        return holds()

    await eventually(probe, within_s=10, what=what)


@pytest.mark.parametrize("stuck", ["a message that nobody takes", "a server that says nothing"])
async def test_closing_takes_no_longer_than_its_grace_and_leaves_nothing_behind(
    client: Client, nats_server: NatsServer, stuck: str
) -> None:
    loop, left = asyncio.get_running_loop(), list[str]()
    gc.collect()  # what other tests have left is theirs
    loop.set_exception_handler(lambda _, context: left.append(repr(context)))
    subscription = await client.subscribe("test.stuck")
    await client.publish("test.stuck", b"x")
    await client.flush()
    if silent := stuck.startswith("a server"):
        await subscription.next_msg()
        await nats_server.platform.kill("nats", signal.SIGSTOP)
    try:
        began_s = loop.time()
        await close(client, timedelta(seconds=1))
        took_s = loop.time() - began_s
    finally:
        if silent:
            await nats_server.platform.kill("nats", signal.SIGCONT)
    gc.collect()

    assert client.is_closed
    assert left == []
    assert took_s < 3


async def test_messages_go_out_and_come_in_in_order(client: Client) -> None:
    hot = HotConnection(client)
    inbox = client.new_inbox()
    heard: list[tuple[bytes, bytes]] = []
    await hot.subscribe(f"{inbox}.*", lambda subject, data: heard.append((subject, data)))
    for number in range(100):
        hot.publish(f"{inbox}.{number}".encode(), b"\r\n" * number)
    large = b"x" * 5_000_000
    hot.publish(f"{inbox}.large".encode(), large)
    await client.publish(f"{inbox}.plain", b"by nats-py")

    await soon(lambda: len(heard) == 102, "every message")
    assert [data for _, data in heard[:100]] == [b"\r\n" * n for n in range(100)]
    assert heard[100] == (f"{inbox}.large".encode(), large)
    assert heard[101][1] == b"by nats-py"


async def test_other_subscriptions_and_requests_stay_nats_pys(client: Client) -> None:
    hot = HotConnection(client)
    subject = client.new_inbox()

    async def answer(message: object) -> None:
        await message.respond(b"pong")  # type: ignore[attr-defined]

    await client.subscribe(subject, cb=answer)  # pyright: ignore[reportArgumentType]
    replies: list[bytes] = []
    reply = client.new_inbox()
    await hot.subscribe(reply, lambda _, data: replies.append(data))
    hot.publish(subject.encode(), b"ping", reply.encode())

    assert (await client.request(subject, b"ping")).data == b"pong"
    await soon(lambda: replies == [b"pong"], "the answer")


async def test_a_publish_nobody_stores_is_answered_empty(client: Client) -> None:
    hot = HotConnection(client)
    reply = client.new_inbox()
    heard: list[bytes] = []
    await hot.subscribe(reply, lambda _, data: heard.append(data))
    hot.publish(b"busbar.work.nowhere.model", b"work", reply.encode())

    await soon(lambda: bool(heard), "the refusal")

    assert heard == [b""]


async def test_a_drained_inbox_has_handed_over_all_that_was_sent_to_it(client: Client) -> None:
    hot = HotConnection(client)
    inbox = client.new_inbox()
    heard: list[tuple[bytes, bytes, bytes]] = []
    deliveries = await hot.receive(inbox, lambda *delivery: heard.append(delivery))
    hot.publish(inbox.encode(), b"1", b"busbar.test.reply")
    await client.publish(inbox, b"2", headers={"Status": "fine"})
    await deliveries.drain()
    hot.publish(inbox.encode(), b"3")
    await client.flush()

    assert heard[0] == (b"busbar.test.reply", b"1", b"")
    assert heard[1][:2] == (b"", b"2")
    assert b"Status: fine" in heard[1][2]
    assert len(heard) == 2


async def test_a_handler_that_fails_does_not_end_the_reading(client: Client) -> None:
    hot = HotConnection(client)
    inbox = client.new_inbox()
    heard: list[bytes] = []

    def fail_first(_: bytes, data: bytes) -> None:
        heard.append(data)
        if len(heard) == 1:
            raise ValueError("a bug")

    await hot.subscribe(inbox, fail_first)
    hot.publish(inbox.encode(), b"first")
    hot.publish(inbox.encode(), b"second")

    await soon(lambda: len(heard) == 2, "the second message")

    assert heard == [b"first", b"second"]


async def test_what_is_to_be_kept_leaves_when_the_server_is_back(
    client: Client, nats_server: NatsServer
) -> None:
    hot = HotConnection(client)
    inbox = client.new_inbox()
    heard: list[bytes] = []
    await hot.subscribe(inbox, lambda _, data: heard.append(data))
    await nats_server.platform.kill("nats", signal.SIGKILL)
    await soon(lambda: client.is_reconnecting, "the loss of the connection")
    with pytest.raises(NatsError):
        hot.publish(inbox.encode(), b"stale by then")
    hot.publish(inbox.encode(), b"kept", keep=True)

    await soon(lambda: heard == [b"kept"], "what was kept")


async def test_without_a_connection_nothing_is_kept_for_later(client: Client) -> None:
    hot = HotConnection(client)
    await client.close()

    with pytest.raises(NatsError):
        hot.publish(b"x", b"y")


async def test_a_server_that_does_not_keep_up_is_given_no_more(client: Client) -> None:
    hot = HotConnection(client)

    with pytest.raises(NatsError, match="keep up"):
        await flood(hot)

    await client.flush(30)
    hot.publish(b"busbar.test.flood", b"again")


async def flood(hot: HotConnection) -> None:
    """Publish faster than any server reads: many large messages in each turn of the loop."""
    part = b"x" * 8_000_000
    for _ in range(20 * UNWRITTEN_BYTES_MAX // len(part) // 16):
        for _ in range(16):
            hot.publish(b"busbar.test.flood", part)
        turn = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(turn.set_result, None)
        await turn
