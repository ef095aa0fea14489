"""More connections than a gateway can have open."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from contextlib import AsyncExitStack, ExitStack, closing

import grpc
import pytest
from busbar_contracts.node.v1.work_pb2 import InferenceWork
from busbar_gateway.adapters.grpc.crowd import keep_out
from busbar_gateway.adapters.grpc.sockets import Connections
from busbar_gateway.adapters.open_files import CONNECTIONS_MAX, connections_of
from files_left import files_left
from gateway_harness import AUTH, Platform, Say, echo, eventually, grpc_edge, pb, request, show_life

INFER = "/inference.GRPCInferenceService/ModelInfer"
CONNECTIONS = 8
SILENT = 30
APART_S = 0.3
OWN = (("grpc.use_local_subchannel_pool", 1),)
RAISED = """
import resource
from busbar_gateway.adapters.open_files import make_room
print(make_room(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


async def asked(channel: grpc.aio.Channel, name: str) -> str:
    answer = await channel.unary_unary(INFER)(request(name), timeout=10, metadata=AUTH)
    return pb.ModelInferResponse.FromString(answer).model_name


def is_cut(connection: socket.socket) -> bool:
    """Whether all that was sent to it has come to an end."""
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    return True


async def test_who_never_says_anything_makes_room_for_who_does(platform: Platform) -> None:
    name, _ = await platform.deploy()
    edge = grpc_edge(platform.gateway, platform.serving, grace_s=1, connections_max=CONNECTIONS)
    with ExitStack() as stack:
        async with edge as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}", OWN) as early:
            first = await asked(early, name)
            silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(SILENT)]
            for one in silent:
                stack.enter_context(one)
                one.setblocking(False)
            await eventually(lambda: sum(map(is_cut, silent)) > SILENT - CONNECTIONS)
            kept = early.get_state()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", OWN) as late:
                answers = [first, await asked(early, name), await asked(late, name)]

    assert kept is grpc.ChannelConnectivity.READY
    assert answers == [name] * 3


async def test_a_gateway_without_a_file_left_finds_whom_to_cut(platform: Platform) -> None:
    name, _ = await platform.deploy()
    edge = grpc_edge(platform.gateway, platform.serving, grace_s=1, connections_max=CONNECTIONS)
    with ExitStack() as stack:
        async with edge as port:
            silent = [stack.enter_context(socket.socket()) for _ in range(2 * SILENT)]
            with files_left(SILENT):
                for one in silent:
                    one.setblocking(False)
                    one.connect_ex(("127.0.0.1", port))
                await eventually(lambda: sum(map(is_cut, silent)) >= 2 * SILENT - CONNECTIONS)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", OWN) as late:
                answered = await asked(late, name)

    assert answered == name


async def test_who_waits_for_an_answer_is_not_cut_for_who_was_answered(platform: Platform) -> None:
    name, _ = await platform.deploy()
    slow, agent = await platform.deploy()
    let_go = asyncio.Event()

    async def behave(work: InferenceWork, say: Say) -> None:
        await show_life(say, let_go)
        await echo(work, say)

    agent.behaviour = behave
    edge = grpc_edge(platform.gateway, platform.serving, grace_s=1, connections_max=CONNECTIONS)
    async with edge as port, AsyncExitStack() as stack:

        async def connect() -> grpc.aio.Channel:
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", OWN)
            return await stack.enter_async_context(channel)

        waiting = asyncio.create_task(asked(await connect(), slow))
        await eventually(lambda: agent.works)
        first, *others = [await connect() for _ in range(CONNECTIONS - 1)]
        await asked(first, name)
        began = time.monotonic()

        async def younger_by_far() -> bool:
            for one in others:
                await asked(one, name)
            return time.monotonic() - began > APART_S

        await eventually(younger_by_far)
        others.append(await connect())  # one too many
        await asked(others[-1], name)
        await eventually(lambda: is_idle(first))
        let_go.set()

        assert await waiting == slow
    assert not any(map(is_idle, others))


def is_idle(channel: grpc.aio.Channel) -> bool:
    """Whether it was connected and no longer is."""
    return channel.get_state() is grpc.ChannelConnectivity.IDLE


async def test_who_only_reads_is_not_cut_for_who_only_waits() -> None:
    """A stream's client says nothing but at first."""
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as stack:
        port = server.getsockname()[1]

        def connect() -> tuple[socket.socket, socket.socket]:
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            accepted = stack.enter_context(server.accept()[0])
            client.sendall(b"!")
            return client, accepted

        async def silent(connection: socket.socket) -> None:
            await eventually(lambda: last_received_ms(connection) > 20)

        connections = stack.enter_context(closing(Connections(port)))
        reads, accepted = connect()
        await silent(accepted)
        waits, waited_for = connect()
        await silent(waited_for)
        accepted.sendall(b"a token")
        keeping_out = asyncio.create_task(keep_out(connections, 1, set))
        for one in (reads, waits):
            one.setblocking(False)
        await eventually(lambda: is_cut(reads) or is_cut(waits))
        keeping_out.cancel()

        assert is_cut(waits)
        assert not is_cut(reads)


def last_received_ms(connection: socket.socket) -> int:
    """How long ago something came over it: tcpi_last_data_recv in linux/tcp.h."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
    return int.from_bytes(info[52:56], sys.byteorder)


@pytest.mark.parametrize(
    ("files", "connections"),
    [(20_000, CONNECTIONS_MAX), (4_096, 960), (1_024, 192), (64, 16)],
)
def test_few_files_are_few_connections_of_each_edge(files: int, connections: int) -> None:
    assert connections_of(files) == connections


@pytest.mark.parametrize("hard", [2_048, 4_096])
def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be(hard: int) -> None:
    few = f'ulimit -S -n 512 && ulimit -H -n {hard} && exec "$@"'
    command = ["sh", "-c", few, "few", sys.executable, "-c", RAISED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1].split() == [str(connections_of(hard)), str(hard)]
