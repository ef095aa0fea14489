"""What a site's node, or somebody who is up to no good there, asks of its region's hub."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time

from busbar_contracts.scheduler.v1.plan_pb2 import NodePlacement
from busbar_messaging import topology
from busbar_messaging.bucket_changes import Put
from busbar_messaging.connection import BusSettings, close, connect
from busbar_messaging.identities import Keyring, identify
from busbar_messaging.provision import ProvisionSettings
from busbar_messaging.server_config import Permissions
from busbar_messaging.topology import HUB_DOMAIN, NodeId, api_prefix, entry_subject
from busbar_messaging.watching import follow
from busbar_runtime.fleet import Fleet
from busbar_runtime.platform import Platform
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.errors import Error as JetStreamError
from pydantic import SecretStr

DEADLINE_S = 20.0
"""For what is allowed."""
SETTLE_S = 1.0
"""For what is refused: mostly nobody says so."""
FLEET = Fleet.of(3)
HERE, ELSEWHERE, NEIGHBOUR = FLEET.nodes  # r1/s1, r2/s2, and r1/s3 in the same region
HUB_API = api_prefix(HUB_DOMAIN)
REFUSED = (NatsTimeoutError, NoRespondersError, JetStreamError)


class Bus:
    """Connections to the platform's servers, closed together."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._found = platform.endpoints
        self._clients: list[Client] = []
        self.settings = ProvisionSettings(
            nats_url=self._found["nats"],
            nats_user="provisioner",
            nats_password=SecretStr(self._found["nats_credentials"]["provisioner"]),
            regions=FLEET.regions,
            sites=FLEET.sites,
            leaf_nodes=True,
        )

    async def service(self, user: str) -> Client:
        secret = self._found["nats_credentials"][user]
        return await self._connect(self._found["nats"], user, secret, "_INBOX")

    async def node(self, node: NodeId) -> Client:
        """A node agent's connection, with what the launcher gives to node agents."""
        identities = identify(self._keyring(), {}, FLEET.nodes)
        secret = identities.sites[node.region, node.site].nodes[node.node]
        return await self._connect(self._at(node), str(node), secret, topology.node_inbox(node))

    async def intruder(self, node: NodeId) -> Client:
        """Somebody who may do everything at the site of `node`."""
        keyring = self._keyring()
        site = f"account {node.region}/{node.site}"
        keyring.seeds["account BUSBAR"] = keyring.seeds[site]  # so that its users are the site's
        secret = identify(keyring, {"intruder": Permissions()}, []).services["intruder"]
        inbox = topology.site_inbox(node.region, node.site) + ".intruder"
        return await self._connect(self._at(node), "intruder", secret, inbox)

    async def of_the_system(self, node: NodeId) -> Client:
        """Whom the server at the site of `node` answers every question about itself."""
        keyring = self._keyring()
        keyring.seeds["account BUSBAR"] = keyring.seeds["account SYS"]
        secret = identify(keyring, {"system": Permissions()}, []).services["system"]
        return await self._connect(self._at(node), "system", secret, "_INBOX")

    async def close(self) -> None:
        for client in self._clients:
            await close(client)

    def _keyring(self) -> Keyring:
        seeds = json.loads((self._platform.home.run / "keyring.json").read_text())
        return Keyring(int(time.time()), seeds)

    def _at(self, node: NodeId) -> str:
        return self._found["sites"][f"{node.region}/{node.site}"]["nats"]

    async def _connect(self, url: str, user: str, secret: str, inbox: str) -> Client:
        settings = BusSettings(
            nats_url=url, nats_user=user, nats_password=SecretStr(secret), nats_inbox=inbox
        )
        self._clients.append(await connect(settings, f"test {user}"))
        return self._clients[-1]


async def put(
    client: Client, bucket: topology.BucketSpec, key: str, within_s: float = DEADLINE_S
) -> None:
    """Write an entry as node agents do; raises one of REFUSED where that may not be."""
    subject = entry_subject(bucket, key, HUB_DOMAIN)
    await client.jetstream().publish(subject, b"alive", timeout=within_s)


async def pulled(client: Client, region: str, queue: str, within_s: float) -> Msg:
    """The next work of a queue; raises one of REFUSED."""
    asking = f"{HUB_API}.CONSUMER.MSG.NEXT.{topology.work_stream(region).name}.{queue}"
    return await asked(client, asking, b'{"batch":1,"expires":5000000000}', within_s)


async def asked(client: Client, subject: str, question: bytes, within_s: float) -> Msg:
    """What comes for a question under whatever subject; raises one of REFUSED."""
    # Work comes under its own subject: only a subscription of its own can take it.
    answers = await client.subscribe(client.new_inbox())
    await client.publish(subject, question, reply=answers.subject)
    answer = await answers.next_msg(within_s)
    if not answer.data:
        raise NoRespondersError
    return answer


async def queue(services: Client, region: str, deployment: str, name: str = "") -> str:
    """A work queue that the scheduler has made, with work in it; its name, unguessable if none."""
    spec = topology.work_consumer(
        region, deployment, name or topology.sealed_queue(deployment, secrets.token_hex(16))
    )
    await services.jetstream().add_consumer(spec.stream, spec.config())
    await services.jetstream().publish(topology.work_subject(region, deployment), region.encode())
    return spec.durable


async def place(services: Client, node: NodeId, **queues: str) -> None:
    """Tell a node what to hold, and what the queues of it are called."""
    told = NodePlacement(node=node.key)
    for deployment, name in queues.items():
        told.replicas.add(deployment=deployment, queue=name)
    bucket = await services.jetstream().key_value(topology.PLACEMENTS.name)
    await bucket.put(node.key, told.SerializeToString())


async def read_placement(client: Client, node: NodeId, within_s: float) -> NodePlacement:
    """What a node is told, read as its agent does; raises TimeoutError where that may not be."""
    changes = follow(client, topology.PLACEMENTS.name, keys=node.key, domain=HUB_DOMAIN)
    async with asyncio.timeout(within_s), contextlib.aclosing(changes):
        async for change in changes:
            if isinstance(change, Put):
                return NodePlacement.FromString(change.value)
    raise TimeoutError
