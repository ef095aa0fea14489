"""The front that is closed as soon as the last call has ended."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import grpc
from busbar_gateway.adapters.grpc.native import Call, NativeServer
from gateway_harness import eventually

ROUNDS = 8
CALLS = 64
ANSWER = bytes(30_000)
OWN = (("grpc.use_local_subchannel_pool", 1),)


async def last_answers(place: Path) -> list[bytes]:
    """What calls get that are answered while the server waits for them, to be closed then."""
    let_go, in_hand = asyncio.Event(), set[int]()

    async def handler(_: bytes, call: Call) -> None:
        in_hand.add(call.call_id)
        await let_go.wait()
        call.respond(ANSWER)

    server = NativeServer("127.0.0.1:0", {"/a.A/Ask": handler}, message_bytes_max=1)
    server.start(place / "nobody.sock")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", OWN) as channel:

        async def ask() -> bytes:
            return await channel.unary_unary("/a.A/Ask")(b"", timeout=10)

        asked = [asyncio.create_task(ask()) for _ in range(CALLS)]
        await eventually(lambda: len(in_hand) == CALLS)
        finishing = asyncio.create_task(server.finish(timedelta(seconds=5)))
        await asyncio.sleep(0)
        let_go.set()
        await finishing
        await server.close()
        return await asyncio.gather(*asked)


async def test_answers_reach_their_clients_before_the_front_is_closed(tmp_path: Path) -> None:
    for _ in range(ROUNDS):
        assert await last_answers(tmp_path) == [ANSWER] * CALLS
