"""Two billings on one ledger, as in every rolling upgrade, and one of them killed under load."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from signal import SIGKILL

import asyncpg
import httpx
import pytest
from billing_parts import Gateway, Json, Service, running
from busbar_billing.adapters.on_duty import HELD_FOR
from busbar_billing.adapters.postgres.duties import Duty
from busbar_billing.domain.statements import month_of
from busbar_contracts.billing.v1 import leases_pb2
from busbar_messaging import topology
from busbar_messaging.connection import BusSettings, close, connect
from busbar_runtime.ports import PortPool
from harness.polling import eventually
from ledger_checks import assert_ledger_holds
from nats.aio.client import Client
from nats.errors import Error as NatsError
from neighbours import Neighbours, neighbours
from webhook_receiver import Receiver, receiving

PAID_NANOS, COST_NANOS = 10**10, 100_000
SINCE = timedelta(days=100)
"""For so long there are the tenants."""
CLOSED_AFTER = timedelta(hours=6)
LOAD_S = 1.0
WITHIN_S = 90
"""Whatever is waited for. What is promised of each is tested where nothing else is going on."""
SETTINGS = {
    "BUSBAR_CLOSE_AUTOMATICALLY": "true",
    "BUSBAR_CLOSE_INTERVAL": "PT0.2S",
    "BUSBAR_AUDIT_INTERVAL": "PT1S",
}
ISSUED = "SELECT sequence, tenant_id, period_start FROM statements ORDER BY sequence"
HELD = "SELECT duty FROM duties WHERE held_until > $1"


@pytest.fixture
async def around(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Neighbours]:
    async with neighbours(tmp_path_factory.mktemp("two-billings")) as found:
        yield found


@dataclass
class Load:
    """What gateways and operators do while it runs."""

    tenants: list[str]
    gateway: Gateway
    client: Client
    killed: Service
    left: Service
    charged: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    taken_back: int = 0
    paid: list[str] = field(default_factory=list[str])
    leases: dict[str, bytes] = field(default_factory=dict[str, bytes])

    async def run(self, ends: asyncio.Event) -> None:
        """Everything at once until `ends`."""
        works = (self._ask, self._use, self._pay)
        await asyncio.gather(*(self._again(work, ends) for work in works))

    async def _again(self, work: Callable[[int], Awaitable[None]], ends: asyncio.Event) -> None:
        for turn in itertools.count():
            if ends.is_set():
                return
            await work(turn)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ends.wait(), 0.01)

    async def _ask(self, turn: int) -> None:
        """For credit, or to give it back, as a gateway: whoever of the two hears it answers."""
        tenant_id = self.tenants[turn % len(self.tenants)]
        ask = leases_pb2.LeaseAsk(tenant_id=tenant_id, want_nanos=10**8, need_nanos=COST_NANOS)
        if turn % 5 == 4 and tenant_id in self.leases:
            ask = leases_pb2.LeaseAsk(
                tenant_id=tenant_id, lease_id=self.leases.pop(tenant_id), closing=True
            )
        call = leases_pb2.LeaseCall(gateway_id="g1", run_id="run-1", asks=[ask])
        try:
            answer = await self.client.request(
                topology.CREDIT_LEASES, call.SerializeToString(), timeout=1
            )
        except NatsError:
            return  # it was the one that is killed now
        for grant in leases_pb2.LeaseReply.FromString(answer.data).grants:
            if grant.granted_nanos and not ask.closing:
                self.leases[grant.tenant_id] = grant.lease_id

    async def _use(self, turn: int) -> None:
        """Requests, some told twice and some taken back."""
        tenant_id = self.tenants[turn % len(self.tenants)]
        lease_id = self.leases.get(tenant_id, b"")
        used = [self.gateway.record(tenant_id, lease_id=lease_id) for _ in range(5)]
        self.charged.setdefault(tenant_id, set()).update(one.request_id.hex() for one in used)
        await self.gateway.publish(*used)
        if turn % 3 == 0:
            await self.gateway.publish(*used[:2])
        if turn % 4 == 0:
            await self.gateway.publish(voids=(self.gateway.void(used[0]),))
            self.taken_back += 1

    async def _pay(self, turn: int) -> None:
        """Top-ups, each told to both; who may be killed over it is not waited for."""
        tenant_id = self.tenants[turn % len(self.tenants)]
        wanted = {"amount_nanos": 1_000, "currency": "USD", "reference": f"paid {turn}"}
        path = f"/tenants/{tenant_id}/topups"

        async def tell(one: Service) -> str:
            try:
                return (await one.call("POST", path, json=wanted)).reason_phrase
            except httpx.TransportError as error:
                return repr(error)  # whether it is done is not known: the other one says

        self.paid.append(f"paid {turn}")
        telling = asyncio.create_task(tell(self.killed))
        # As an operator does who gets no answer, or none that says how it went.
        await eventually(
            lambda: tell(self.left),
            within_s=WITHIN_S,
            what="a payment is taken",
            until=lambda said: said in {"Created", "OK"},
        )
        await telling


async def with_a_past(billing: Service, owner: asyncpg.Connection, receiver: Receiver) -> str:
    """A tenant that has money, months to close, and listens."""
    tenant_id = await billing.tenant()
    paid = {"amount_nanos": PAID_NANOS, "currency": "USD", "reference": "first"}
    await billing.json("POST", f"/tenants/{tenant_id}/topups", json=paid)
    wanted = {"url": receiver.url, "event_types": ["payment.succeeded", "statement.issued"]}
    await billing.json("POST", f"/tenants/{tenant_id}/webhooks", json=wanted)
    await owner.execute(
        "UPDATE tenants SET created_at = created_at - $2::interval WHERE tenant_id = $1",
        tenant_id,
        SINCE,
    )
    return tenant_id


async def test_one_of_two_is_killed_under_load_and_nothing_is_done_twice_or_left(
    around: Neighbours, ports: PortPool
) -> None:
    owner = await around.database()
    found = around.platform.endpoints
    password = found["nats_credentials"]["gateway"]
    as_gateway = BusSettings(nats_url=found["nats"], nats_user="gateway", nats_password=password)
    client = await connect(as_gateway, "test")
    environment = {**around.environment, **SETTINGS}
    async with receiving() as receiver, running(environment, ports) as killed:
        # So they are its, and must be taken over from it.
        await duties_are_held(owner, await clock(owner))
        async with running(environment, ports) as left:
            tenants = [await with_a_past(left, owner, receiver) for _ in range(3)]
            load = Load(tenants, around.gateway, client, killed, left)
            ends = asyncio.Event()
            running_load = asyncio.create_task(load.run(ends))
            await asyncio.wait([running_load], timeout=LOAD_S)
            await killed.end(SIGKILL)
            killed_at = await clock(owner)
            await asyncio.wait([running_load], timeout=LOAD_S)
            ends.set()
            await running_load
            await settled(around, owner, load)
            await duties_are_held(owner, killed_at + HELD_FOR)
            months = await months_are_closed(owner, len(tenants))
            report = await audited(left)
            messages = await told(owner, receiver)

    assert (report["state"], breaches(report)) == ("finished", [])
    await assert_ledger_holds(owner)
    posted = await owner.fetch("SELECT tenant_id, request_id FROM usage_records")
    assert {(row[0], row[1].hex) for row in posted} == {
        (tenant_id, request_id) for tenant_id, ids in load.charged.items() for request_id in ids
    }
    assert load.taken_back == await owner.fetchval(
        "SELECT count(*) FROM transfers WHERE kind = 'void'"
    )
    references = await owner.fetch("SELECT reason FROM transfers WHERE kind = 'top_up'")
    assert sorted(row[0] for row in references if row[0] != "first") == sorted(load.paid)
    rows = await owner.fetch(ISSUED)
    assert [row["sequence"] for row in rows] == list(range(1, months + 1))
    assert len({(row["tenant_id"], row["period_start"]) for row in rows}) == months
    assert messages["stored"] == messages["received"]
    await owner.close()
    await close(client)


async def settled(around: Neighbours, owner: asyncpg.Connection, load: Load) -> None:
    """Return when all that was written is posted."""
    spec = topology.BILLING_USAGE
    wanted = sum(len(one) for one in load.charged.values())

    async def waiting() -> tuple[int, int]:
        info = await around.bus.jetstream(timeout=WITHIN_S).consumer_info(spec.stream, spec.durable)
        posted = await owner.fetchval("SELECT count(*) FROM usage_records")
        return wanted - posted, (info.num_pending or 0) + (info.num_ack_pending or 0)

    await eventually(
        waiting, within_s=WITHIN_S, what="all is posted", until=lambda one: one == (0, 0)
    )


async def clock(owner: asyncpg.Connection) -> datetime:
    """The database's."""
    return await owner.fetchval("SELECT clock_timestamp()")


async def duties_are_held(owner: asyncpg.Connection, beyond: datetime) -> None:
    """Each until after that moment. Beyond what a dead one may have asked for: by another one."""
    await eventually(
        lambda: owner.fetch(HELD, beyond),
        within_s=WITHIN_S,
        what="duties are held",
        until=lambda them: len(them) == len(Duty),
    )


async def months_are_closed(owner: asyncpg.Connection, tenants: int) -> int:
    """How many there were to close, once there are as many statements."""
    now = await clock(owner)
    month, ended, months = month_of(now - SINCE), month_of(now - CLOSED_AFTER), 0
    while month != ended:
        month, months = month.following, months + tenants
    await eventually(
        lambda: owner.fetch(ISSUED),
        within_s=WITHIN_S,
        what=f"{months} months are closed",
        until=lambda rows: len(rows) >= months,
    )
    return months


async def audited(billing: Service) -> Json:
    """An audit from zero, by the one that is left, which goes on with the endless one, too."""
    await eventually(
        lambda: billing.metric("busbar_billing_audit_clean_timestamp_seconds"),
        within_s=WITHIN_S,
        what="the one that is left has audited",
    )
    begun = await billing.json("POST", "/audits")
    return await eventually(
        lambda: billing.json("GET", f"/audits/{begun['audit_id']}"),
        within_s=WITHIN_S,
        what="the audit ends",
        until=lambda one: one["state"] != "running",
    )


def breaches(report: Json) -> list[Json]:
    """Of all checks."""
    return [one for check in report["checks"] for one in check["breaches"]]


async def told(owner: asyncpg.Connection, receiver: Receiver) -> dict[str, set[str]]:
    """Ids of the messages that were to be told, and of those that came."""
    # As if the minute were over for which the killed one holds what it was sending.
    await owner.execute("UPDATE webhook_deliveries SET next_attempt_at = now()")

    async def so_far() -> dict[str, set[str]]:
        stored = await owner.fetch("SELECT message_id FROM webhook_messages")
        return {
            "stored": {row[0] for row in stored},
            "received": {one.headers["webhook-id"] for one in receiver.received},
        }

    return await eventually(
        so_far,
        within_s=WITHIN_S,
        what="all are told",
        until=lambda ids: ids["stored"] == ids["received"],
    )
