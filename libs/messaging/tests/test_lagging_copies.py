"""Following a bucket of three copies, one of which lags behind: that of a server just restarted."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from busbar_messaging.bucket_changes import Current, Deleted, Put
from busbar_messaging.watching import follow
from busbar_runtime.nats import server_binary
from busbar_runtime.ports import LOOPBACK, PortPool
from harness.polling import eventually
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import KeyValueConfig
from nats.js.kv import KeyValue

NAMES = ("a", "b", "c")
BUCKETS = ("grown", "changed", "shrunk")
WITHIN_S = 30.0
LOOKED_AT_FOR_S = 4.0
"""After a restart; the copy is known to have lagged from the first second on, for up to five."""


@dataclass
class Cluster:
    """Three real servers that elect their leaders."""

    home: Path
    ports: PortPool
    client_ports: dict[str, int] = field(default_factory=dict[str, int])
    monitor_ports: dict[str, int] = field(default_factory=dict[str, int])
    running: dict[str, subprocess.Popen[bytes]] = field(
        default_factory=dict[str, subprocess.Popen[bytes]]
    )

    def start(self) -> None:
        """All of them."""
        among = {name: self.ports.take() for name in NAMES}
        routes = [f"nats://{LOOPBACK}:{port}" for port in among.values()]
        for name in NAMES:
            self.client_ports[name], self.monitor_ports[name] = self.ports.take(), self.ports.take()
            config = self.home / f"{name}.conf"
            said = {
                "server_name": name,
                "listen": f"{LOOPBACK}:{self.client_ports[name]}",
                "http": f"{LOOPBACK}:{self.monitor_ports[name]}",
                # as deploy/nats/hub.conf has it; without it none was seen to lag
                "jetstream": {"store_dir": str(self.home / name), "sync_interval": "always"},
                "cluster": {
                    "name": "copies",
                    "listen": f"{LOOPBACK}:{among[name]}",
                    "routes": routes,
                },
            }
            config.write_text(json.dumps(said))
            self.begin(name)

    def begin(self, name: str) -> None:
        """One of them."""
        config, log = self.home / f"{name}.conf", self.home / f"{name}.log"
        argv = [server_binary(), "--config", str(config), "--log", str(log)]
        self.running[name] = subprocess.Popen(argv)

    def kill(self, name: str) -> None:
        """As the loss of its power would."""
        self.running[name].kill()
        self.running[name].wait()

    def url(self, name: str) -> str:
        """Where clients find one."""
        return f"nats://{LOOPBACK}:{self.client_ports[name]}"

    async def chief(self) -> str:
        """Which of them assigns streams and consumers; empty while nobody does."""

        def asked() -> str:
            url = f"http://{LOOPBACK}:{self.monitor_ports[NAMES[0]]}/jsz"
            with suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
                return json.load(answer).get("meta_cluster", {}).get("leader") or ""
            return ""

        return await asyncio.to_thread(asked)

    def end(self) -> None:
        """All that still run."""
        for name in self.running:
            self.kill(name)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    ports = PortPool()
    made = Cluster(tmp_path, ports)
    made.start()
    yield made
    made.end()
    ports.close()


async def made_bucket(client: Client, name: str) -> KeyValue:
    """Three copies, as soon as the servers can give them."""

    async def made() -> KeyValue | None:
        config = KeyValueConfig(bucket=name, replicas=len(NAMES))
        with suppress(NatsError, TimeoutError):
            return await client.jetstream(timeout=2).create_key_value(config)
        return None

    bucket = await eventually(made, within_s=WITHIN_S, what="a bucket")
    assert bucket is not None
    return bucket


async def written(bucket: KeyValue, key: str, value: bytes) -> None:
    """As soon as the stream behind the bucket, just made, is heard of by the server we ask."""

    async def put() -> int:
        with suppress(NatsError, TimeoutError):
            return await bucket.put(key, value)
        return 0

    await eventually(put, within_s=WITHIN_S, what="a write")


async def read_whole(client: Client, name: str) -> dict[str, bytes]:
    """What a follower knows when it says that this is all."""
    known = dict[str, bytes]()
    async with aclosing(follow(client, name)) as changes:
        async for change in changes:
            match change:
                case Put(key, value):
                    known[key] = value
                case Deleted(key):
                    known.pop(key, None)
                case Current():
                    break
    return known


async def test_what_a_restarted_server_does_not_know_yet_is_not_taken_for_gone_or_unchanged(
    cluster: Cluster,
) -> None:
    """Of three buckets: the last that was written is a new key, another value, a deletion."""
    chief = await eventually(cluster.chief, within_s=WITHIN_S, what="a leader of all")
    client = Client()
    await client.connect(cluster.url(chief))
    try:
        grown, changed, shrunk = [await made_bucket(client, name) for name in BUCKETS]
        for bucket in (grown, changed, shrunk):
            await written(bucket, "first", b"1")
            await written(bucket, "second", b"2")
        await written(grown, "third", b"3")
        await written(changed, "first", b"4")
        await shrunk.delete("first")
        restarted = next(name for name in NAMES if name != chief)
        cluster.kill(restarted)
        cluster.begin(restarted)

        until, read = time.monotonic() + LOOKED_AT_FOR_S, list[list[dict[str, bytes]]]()
        while time.monotonic() < until:
            async with asyncio.timeout(WITHIN_S):
                each = [read_whole(client, name) for name in BUCKETS for _ in range(4)]
                read.append(list(await asyncio.gather(*each)))
    finally:
        await client.close()

    whole = [
        *[{"first": b"1", "second": b"2", "third": b"3"}] * 4,
        *[{"first": b"4", "second": b"2"}] * 4,
        *[{"second": b"2"}] * 4,
    ]
    assert [one for one in read if one != whole] == []
