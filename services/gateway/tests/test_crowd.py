"""More connections than a gateway can have open."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from contextlib import ExitStack

import grpc
import pytest
from busbar_gateway.adapters.open_files import CONNECTIONS_MAX, connections_of
from gateway_harness import AUTH, Platform, eventually, grpc_edge, pb, request

INFER = "/inference.GRPCInferenceService/ModelInfer"
CONNECTIONS = 8
SILENT = 30
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
    own = (("grpc.use_local_subchannel_pool", 1),)
    with ExitStack() as stack:
        async with edge as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}", own) as early:
            first = await asked(early, name)
            silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(SILENT)]
            for one in silent:
                stack.enter_context(one)
                one.setblocking(False)
            await eventually(lambda: sum(map(is_cut, silent)) > SILENT - CONNECTIONS)
            kept = early.get_state()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", own) as late:
                answers = [first, await asked(early, name), await asked(late, name)]

    assert kept is grpc.ChannelConnectivity.READY
    assert answers == [name] * 3


@pytest.mark.parametrize(
    ("files", "connections"),
    [(20_000, CONNECTIONS_MAX), (4_096, 960), (1_024, 192), (64, 16)],
)
def test_few_files_are_few_connections_of_each_edge(files: int, connections: int) -> None:
    assert connections_of(files) == connections


@pytest.mark.parametrize("hard", [2_048, 4_096])
def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be(hard: int) -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))

    done = subprocess.run(
        [sys.executable, "-c", RAISED], preexec_fn=few, capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines()[-1].split() == [str(connections_of(hard)), str(hard)]
