"""The benchmark's peer: a gateway and an agent as the libraries' tutorials have them.

A grpc.aio server that publishes each request to a JetStream work queue, awaits the PubAck and one
inbox; a pull consumer that calls Triton through grpc.aio. It knows no keys, admits everybody,
charges nothing, traces nothing and forgets what it had in hand when it ends. `python peer.py
gateway|agent`, settings in the environment; the gateway prints its port.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import grpc.aio
import nats
from busbar_runtime.child import tethered
from load import LoadFailed
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import RetentionPolicy, StorageType
from tritonclient.grpc import service_pb2, service_pb2_grpc

STREAM, SUBJECT, DURABLE = "PEER", "peer.work", "agents"
IN_HAND_MAX = 64
ANSWER_WITHIN_S = 30.0


@dataclass(frozen=True)
class Peer:
    """It runs: where it listens, and its processes by the part whose work they do."""

    address: str
    pids: dict[str, int]


@contextmanager
def running(endpoints: dict[str, Any], triton: str) -> Iterator[Peer]:
    """The peer on the platform's NATS and the Triton at `triton`, until the block ends."""
    settings = {
        "PEER_NATS": endpoints["nats"],
        "PEER_NATS_USER": "provisioner",
        "PEER_NATS_PASSWORD": endpoints["nats_credentials"]["provisioner"],
        "PEER_TRITON": triton,
    }
    started: dict[str, subprocess.Popen[str]] = {}
    said: dict[str, str] = {}
    try:
        for part, role in (("node-agent", "agent"), ("gateway", "gateway")):
            started[part] = subprocess.Popen(
                tethered([sys.executable, __file__, role]),
                env={**os.environ, **settings},
                stdout=subprocess.PIPE,
                text=True,
            )
            said[part] = (started[part].stdout or sys.stdin).readline().strip()
            if not said[part]:
                raise LoadFailed(f"the peer's {role} did not start")
        pids = {part: process.pid for part, process in started.items()}
        yield Peer(f"127.0.0.1:{said['gateway']}", pids)
    finally:
        for process in started.values():
            process.kill()
            process.wait()


class Gateway(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Forwards ModelInfer over the bus and awaits the answer."""

    def __init__(self, client: Client) -> None:
        self._client, self._bus = client, client.jetstream()
        self._inbox = client.new_inbox()
        self._waiting: dict[str, asyncio.Future[bytes]] = {}

    async def listen(self) -> None:
        await self._client.subscribe(f"{self._inbox}.*", cb=self._answered)

    async def _answered(self, message: Msg) -> None:
        waiting = self._waiting.get(message.subject.rpartition(".")[2])
        if waiting is not None and not waiting.done():
            waiting.set_result(message.data)

    async def ModelInfer(  # noqa: N802
        self, request: service_pb2.ModelInferRequest, context: Any
    ) -> service_pb2.ModelInferResponse:
        name = uuid4().hex
        answer = self._waiting[name] = asyncio.get_running_loop().create_future()
        try:
            reply_to = {"reply-to": f"{self._inbox}.{name}"}
            await self._bus.publish(SUBJECT, request.SerializeToString(), headers=reply_to)
            payload = await asyncio.wait_for(answer, ANSWER_WITHIN_S)
        finally:
            del self._waiting[name]
        return service_pb2.ModelInferResponse.FromString(payload)


async def serve(client: Client) -> None:
    """Until killed; prints the port."""
    gateway, server = Gateway(client), grpc.aio.server()
    await gateway.listen()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(gateway, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)  # noqa: T201
    await server.wait_for_termination()


async def work(client: Client, triton: str) -> None:
    """Until killed: pull, call Triton, answer, acknowledge."""
    subscription = await client.jetstream().pull_subscribe(SUBJECT, DURABLE)
    slots, tasks = asyncio.Semaphore(IN_HAND_MAX), set[asyncio.Task[None]]()
    async with grpc.aio.insecure_channel(triton) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        async def one(message: Msg) -> None:
            try:
                request = service_pb2.ModelInferRequest.FromString(message.data)
                response = await stub.ModelInfer(request)
                reply_to = (message.headers or {})["reply-to"]
                await client.publish(reply_to, response.SerializeToString())
                await message.ack()
            finally:
                slots.release()

        print("ready", flush=True)  # noqa: T201
        while True:
            try:
                messages = await subscription.fetch(IN_HAND_MAX, timeout=1)
            except TimeoutError:
                continue
            for message in messages:
                await slots.acquire()
                task = asyncio.create_task(one(message))
                tasks.add(task)
                task.add_done_callback(tasks.discard)


async def main(role: str) -> None:
    client = await nats.connect(
        os.environ["PEER_NATS"],
        user=os.environ["PEER_NATS_USER"],
        password=os.environ["PEER_NATS_PASSWORD"],
    )
    await client.jetstream().add_stream(
        name=STREAM,
        subjects=[SUBJECT],
        retention=RetentionPolicy.WORK_QUEUE,
        storage=StorageType.FILE,
    )
    await (serve(client) if role == "gateway" else work(client, os.environ["PEER_TRITON"]))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
