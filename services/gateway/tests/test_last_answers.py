"""The front that is closed as soon as the last call has ended."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
from busbar_gateway.adapters.grpc.native import Call, NativeServer, behind
from busbar_messaging.background import end
from gateway_harness import eventually
from slow_way import slow_way

ROUNDS = 8
CALLS, CUSTOMERS = 64, 20
ANSWER, LARGE = bytes(30_000), bytes(200_000)
METHOD = "/a.A/Ask"
OWN = (("grpc.use_local_subchannel_pool", 1),)


class Asked:
    """Calls that are answered once they are let go."""

    def __init__(self, answer: bytes = ANSWER) -> None:
        self.answer = answer
        self.in_hand = 0
        self.let_go = asyncio.Event()

    async def natively(self, _: bytes, call: Call) -> None:
        self.in_hand += 1
        await self.let_go.wait()
        call.respond(self.answer)

    async def behind(self, _: bytes, __: Any) -> bytes:
        self.in_hand += 1
        await self.let_go.wait()
        return self.answer


def native(asked: Asked) -> NativeServer:
    return NativeServer("127.0.0.1:0", {METHOD: asked.natively}, message_bytes_max=1)


async def answers(asked: Asked, server: NativeServer, port: int, finishing: Any) -> list[bytes]:
    """What calls get that are answered while the server waits for them, to be closed then."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", OWN) as channel:

        async def ask() -> bytes:
            return await channel.unary_unary(METHOD)(b"", timeout=20)

        calls = [asyncio.create_task(ask()) for _ in range(CALLS)]
        await eventually(lambda: asked.in_hand == CALLS)
        finished = asyncio.create_task(finishing)
        await asyncio.sleep(0)
        asked.let_go.set()
        await finished
        await server.close()
        return await asyncio.gather(*calls)


async def test_answers_reach_their_clients_before_the_front_is_closed(tmp_path: Path) -> None:
    for _ in range(ROUNDS):
        asked = Asked()
        server = native(asked)
        server.start(tmp_path / "nobody.sock")
        finishing = server.finish(timedelta(seconds=5))

        assert await answers(asked, server, server.port, finishing) == [ANSWER] * CALLS


async def test_answers_of_the_server_behind_reach_their_clients_too() -> None:
    for _ in range(ROUNDS):
        asked = Asked()
        server = NativeServer("127.0.0.1:0", {}, message_bytes_max=1)
        fallback: Any = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(asked.behind)
        fallback.add_registered_method_handlers("a.A", {"Ask": handler})
        async with behind(fallback) as place:
            server.start(place)

            assert await answers(asked, server, server.port, fallback.stop(5)) == [ANSWER] * CALLS


async def test_who_takes_answers_slowly_gets_them_all(tmp_path: Path) -> None:
    asked = Asked(LARGE)
    server = native(asked)
    server.start(tmp_path / "nobody.sock")
    async with slow_way(server.port) as port:
        finishing = server.finish(timedelta(seconds=15))

        assert await answers(asked, server, port, finishing) == [LARGE] * CALLS


async def test_who_takes_nothing_is_not_waited_for(tmp_path: Path) -> None:
    """That is seen after two seconds; the grace would be a minute."""
    asked = Asked(LARGE)
    server = native(asked)
    server.start(tmp_path / "nobody.sock")

    async def is_closed() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        except ConnectionError as error:
            return isinstance(error, ConnectionRefusedError)
        writer.close()
        return False

    async with slow_way(server.port, every_s=60) as port:
        finishing = server.finish(timedelta(minutes=1))
        asking = asyncio.create_task(answers(asked, server, port, finishing))
        await eventually(is_closed, within_s=10)
        asking.cancel()
        await asyncio.wait([asking])


async def test_who_goes_on_asking_is_not_waited_for(tmp_path: Path) -> None:
    """Who is refused has something to take all the time; the grace would be a minute."""
    asked = Asked()
    asked.let_go.set()
    server = native(asked)
    server.start(tmp_path / "nobody.sock")

    async def go_on() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", OWN) as channel:
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await channel.unary_unary(METHOD)(b"", timeout=10)

    async def leave() -> None:
        await server.finish(timedelta(minutes=1))
        await server.close()

    asking = [asyncio.create_task(go_on()) for _ in range(CUSTOMERS)]
    await eventually(lambda: asked.in_hand > CUSTOMERS)
    await asyncio.wait_for(leave(), 10)
    await end(asking)
