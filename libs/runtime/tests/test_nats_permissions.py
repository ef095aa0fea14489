"""What deploy/nats/nats.conf forbids: each service may write what it owns and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import nats
import pytest
from busbar_messaging import topology
from busbar_runtime.pytest_plugin import NatsServer
from nats.aio.client import Client
from nats.errors import Error as NatsError

OWNER_OF_BUCKET = {
    "keys": "billing",
    "deployments": "scheduler",
    "bundles": "scheduler",
    "placements": "scheduler",
    "routes": "scheduler",
    "demand": "scheduler",
    "leaders": "scheduler",
    "nodes": "agent",
    "leases": "agent",
    "claims": "agent",
    "gateways": "gateway",
}
OWNER_OF_SUBJECT = {
    topology.event_subject("gateway", "seen"): "gateway",
    topology.event_subject("billing", "seen"): "billing",
    topology.event_subject("scheduler", "seen"): "scheduler",
    topology.event_subject("node", "seen"): "agent",
    topology.event_subject("telemetry", "seen"): "telemetry",
    topology.work_subject("r1", "some-model"): "gateway",
}
OWNER_OF_RECORD = {
    topology.usage_subject("r1", "g1"): "gateway",
    topology.measured_subject(topology.NodeId("r1", "s1", "n1")): "agent",
}
SERVICES = ("gateway", "billing", "scheduler", "agent", "telemetry")


class Bus:
    """One connection per user to a provisioned server, and what the server refused them."""

    def __init__(self, server: NatsServer) -> None:
        self._server = server
        self._clients: dict[str, Client] = {}
        self.refused: dict[str, list[str]] = {}

    async def client(self, user: str) -> Client:
        if user not in self._clients:
            said = self.refused.setdefault(user, [])

            async def on_error(error: Exception) -> None:
                said.append(str(error))

            self._clients[user] = await nats.connect(
                self._server.url,
                user=user,
                password=self._server.credentials[user],
                error_cb=on_error,
            )
        return self._clients[user]

    async def may_publish(self, user: str, subject: str) -> bool:
        """Whether the server lets the user publish there."""
        client = await self.client(user)
        await client.publish(subject, b"")
        # A ping is written ahead of what is pending: only the second comes after the publish.
        await client.flush()
        await client.flush()
        return not any(f'"{subject.lower()}"' in line.lower() for line in self.refused[user])

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()


@pytest.fixture(scope="module")
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    made = Bus(nats_server)
    yield made
    await made.close()


@pytest.mark.parametrize(("bucket", "owner"), OWNER_OF_BUCKET.items())
async def test_a_bucket_is_written_by_its_owner_only(bus: Bus, bucket: str, owner: str) -> None:
    users = (*SERVICES, "operator")
    answers = await asyncio.gather(
        *[bus.may_publish(user, f"$KV.{bucket}.some-key") for user in users]
    )

    assert {user for user, may in zip(users, answers, strict=True) if may} == {owner}


@pytest.mark.parametrize(("subject", "owner"), OWNER_OF_SUBJECT.items())
async def test_facts_and_work_are_published_by_their_owner_only(
    bus: Bus, subject: str, owner: str
) -> None:
    users = (*SERVICES, "operator")
    answers = await asyncio.gather(*[bus.may_publish(user, subject) for user in users])

    assert {user for user, may in zip(users, answers, strict=True) if may} == {owner}


@pytest.mark.parametrize(("subject", "owner"), OWNER_OF_RECORD.items())
async def test_records_are_published_by_their_owner_and_replayed_by_the_operator(
    bus: Bus, subject: str, owner: str
) -> None:
    users = (*SERVICES, "operator")
    answers = await asyncio.gather(*[bus.may_publish(user, subject) for user in users])

    assert {user for user, may in zip(users, answers, strict=True) if may} == {owner, "operator"}


@pytest.mark.parametrize("stream", ["DLQ", "USAGE", "EVENTS"])
async def test_the_operator_removes_dead_letters_and_nothing_else(bus: Bus, stream: str) -> None:
    subject = f"$JS.API.STREAM.MSG.DELETE.{stream}"
    users = (*SERVICES, "operator")
    answers = await asyncio.gather(*[bus.may_publish(user, subject) for user in users])

    allowed = {user for user, may in zip(users, answers, strict=True) if may}
    assert allowed == ({"operator"} if stream == "DLQ" else set())


@pytest.mark.parametrize("user", [*SERVICES, "operator"])
@pytest.mark.parametrize("action", ["CREATE", "UPDATE", "DELETE", "PURGE"])
async def test_only_the_provisioner_shapes_streams(bus: Bus, user: str, action: str) -> None:
    assert not await bus.may_publish(user, f"$JS.API.STREAM.{action}.USAGE")


@pytest.mark.parametrize(
    ("user", "subject"),
    [
        ("telemetry", "$JS.API.CONSUMER.CREATE.KV_keys"),
        ("telemetry", "$JS.API.DIRECT.GET.KV_keys.$KV.keys.some-key"),
        ("agent", "$JS.API.CONSUMER.CREATE.KV_keys"),
        ("scheduler", "$JS.API.CONSUMER.CREATE.KV_keys"),
        ("scheduler", "$JS.API.CONSUMER.DELETE.USAGE.billing-usage"),
        ("scheduler", "$JS.API.CONSUMER.MSG.NEXT.USAGE.billing-usage"),
        ("agent", "$JS.API.CONSUMER.MSG.NEXT.USAGE.billing-usage"),
        ("agent", "$JS.ACK.USAGE.billing-usage.1.1.1.1.1"),
        ("telemetry", "$JS.ACK.USAGE.billing-usage.1.1.1.1.1"),
        ("gateway", "$JS.API.CONSUMER.MSG.NEXT.WORK_r1.work-some-model"),
        ("operator", "$JS.API.CONSUMER.CREATE.KV_keys"),
        ("billing", topology.reply_subject("g1")),
        ("telemetry", topology.cancel_subject("r1.s1.n1")),
        ("gateway", topology.dead_letter_subject("billing", "billing-usage")),
    ],
)
async def test_what_belongs_to_somebody_else_is_out_of_reach(
    bus: Bus, user: str, subject: str
) -> None:
    assert not await bus.may_publish(user, subject)


@pytest.mark.parametrize("user", ["billing", "scheduler", "agent", "telemetry", "operator"])
async def test_only_a_gateway_hears_answers(bus: Bus, user: str) -> None:
    client = await bus.client(user)
    await client.subscribe(topology.reply_subject("g1"))
    await client.flush()
    await client.flush()

    assert any("subscription" in line for line in bus.refused[user])


async def test_nobody_connects_without_a_password(nats_server: NatsServer) -> None:
    with pytest.raises(NatsError, match=r"(?i)authorization"):
        await nats.connect(nats_server.url, allow_reconnect=False, max_reconnect_attempts=0)
