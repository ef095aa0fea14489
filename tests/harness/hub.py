"""Who leads what among the NATS servers of a region, and leading it by one of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
from busbar_messaging.connection import BusSettings, connect
from busbar_runtime.platform import Platform
from nats.aio.client import Client
from pydantic import SecretStr

from harness.polling import eventually

_WITHIN_S = 30.0


@asynccontextmanager
async def as_provisioner(platform: Platform) -> AsyncIterator[Client]:
    """Who may do everything with streams."""
    found = platform.endpoints
    settings = BusSettings(
        nats_url=found["nats"],
        nats_user="provisioner",
        nats_password=SecretStr(found["nats_credentials"]["provisioner"]),
    )
    client = await connect(settings, "hub leaders")
    try:
        yield client
    finally:
        await client.close()


async def leader_of(client: Client, stream: str) -> str:
    """The process of the server that leads a stream of three replicas.

    Empty during an election, when the servers that follow may not be listed either.
    """
    cluster = (await client.jetstream(timeout=5).stream_info(stream)).cluster
    if cluster is None or len(cluster.replicas or []) != 2:
        return ""
    return cluster.leader or ""


async def let_lead(client: Client, server: str) -> int:
    """Make a server the leader of every stream and every durable consumer; returns of how many."""
    jetstream = client.jetstream(timeout=5)
    streams = [info.config.name or "" for info in await jetstream.streams_info()]
    for stream in streams:
        await _hand_over(client, f"STREAM.LEADER.STEPDOWN.{stream}", server)
    handed_over = len(streams)
    for stream in streams:
        for consumer in await jetstream.consumers_info(stream):
            if not consumer.config.durable_name:
                continue
            name = f"{stream}.{consumer.config.durable_name}"
            await _hand_over(client, f"CONSUMER.LEADER.STEPDOWN.{name}", server)
            handed_over += 1

    async def all_lead() -> list[str]:
        leaders = {stream: await leader_of(client, stream) for stream in streams}
        return [stream for stream, leader in leaders.items() if leader != server]

    await eventually(
        all_lead, within_s=_WITHIN_S, what=f"{server} leads all", until=lambda left: not left
    )
    return handed_over


def server_of(platform: Platform, service: str) -> str:
    """The process of the NATS server to which a service is connected."""
    reached = {
        connection.raddr.port
        for connection in psutil.Process(platform.pids[service]).net_connections("tcp")
        if connection.raddr
    }
    for name, pid in platform.pids.items():
        listening = psutil.Process(pid).net_connections("tcp")
        ports = {one.laddr.port for one in listening if one.status == psutil.CONN_LISTEN}
        if name.startswith("nats") and ports & reached:
            return name
    raise AssertionError(f"{service} is connected to no NATS server")


async def _hand_over(client: Client, request: str, server: str) -> None:
    wish = json.dumps({"placement": {"preferred": server}}).encode()

    async def asked() -> bool:
        answer = json.loads((await client.request(f"$JS.API.{request}", wish, timeout=5)).data)
        error = answer.get("error") or {}
        already = "leader" in error.get("description", "")
        return bool(answer.get("success")) or already

    await eventually(asked, within_s=_WITHIN_S, what=f"{server} takes {request}")
