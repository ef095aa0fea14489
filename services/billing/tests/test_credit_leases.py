"""Credit leases on a real bus and a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from billing_parts import WARRANTS, Gateway, Service
from busbar_billing.adapters.bus.credit_leases import Reclaimer
from busbar_billing.adapters.postgres.database import Database, open_database
from busbar_billing.adapters.postgres.journal import Journal
from busbar_billing.adapters.postgres.leases import Leases
from busbar_billing.domain.leases import TTL_MS
from busbar_contracts.billing.v1 import leases_pb2
from busbar_contracts.billing.v1.prices_pb2 import PriceSheet
from busbar_messaging import topology
from busbar_runtime.pytest_plugin import Database as Made
from harness.polling import eventually
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from uuid_utils.compat import uuid7

BALANCE = 10_000_000
COST_NANOS = 100_000
OPENING_NANOS = BALANCE // 100
"""What a new lease holds when less was wished for."""


@dataclass(frozen=True)
class Asking:
    """A gateway that asks for credit."""

    client: Client
    gateway_id: str = "g1"
    run_id: str = "run-1"

    async def ask(self, tenant_id: str, **ask: Any) -> leases_pb2.LeaseGrant:
        [grant] = (await self.call(leases_pb2.LeaseAsk(tenant_id=tenant_id, **ask))).grants
        return grant

    async def call(self, *asks: leases_pb2.LeaseAsk) -> leases_pb2.LeaseReply:
        call = leases_pb2.LeaseCall(gateway_id=self.gateway_id, run_id=self.run_id, asks=asks)
        reply = await self.client.request(
            topology.CREDIT_LEASES, call.SerializeToString(), timeout=5
        )
        return leases_pb2.LeaseReply.FromString(reply.data)


async def recalled(recalls: Subscription) -> list[str]:
    return list(
        leases_pb2.CreditRecall.FromString((await recalls.next_msg(timeout=5)).data).tenant_ids
    )


@pytest.fixture
async def rich(billing: Service) -> str:
    """A tenant with a balance."""
    tenant_id = await billing.tenant()
    body = {"amount_nanos": BALANCE, "currency": "USD", "reference": "first"}
    await billing.json("POST", f"/tenants/{tenant_id}/topups", json=body)
    return tenant_id


@pytest.fixture
def asking(bus: Client, billing: Service) -> Asking:
    del billing
    return Asking(bus)


@pytest.fixture
async def pool(database: Made) -> AsyncIterator[Database]:
    async with open_database(database.billing_dsn) as opened:
        yield opened


async def set_budget(billing: Service, tenant_id: str, budget_nanos: int) -> None:
    body = {"overrides": {"monthly_budget_nanos": budget_nanos}}
    await billing.json("PUT", f"/tenants/{tenant_id}/terms", json=body)


async def amounts(billing: Service, tenant_id: str) -> tuple[int, int, int]:
    held = await billing.json("GET", f"/tenants/{tenant_id}/balance")
    return held["available_nanos"], held["held_nanos"], held["owed_nanos"]


async def test_a_slice_moves_into_the_lease_and_a_renewal_adds_to_it(
    billing: Service, asking: Asking, rich: str
) -> None:
    opened = await asking.ask(rich, want_nanos=1_000_000)
    more = await asking.ask(rich, lease_id=opened.lease_id, want_nanos=500_000)

    assert opened.granted_nanos == 1_000_000
    assert opened.ttl_ms == TTL_MS
    assert more.lease_id == opened.lease_id
    assert more.granted_nanos == 1_500_000
    assert more.available_nanos == BALANCE - 1_500_000
    assert await amounts(billing, rich) == (BALANCE - 1_500_000, 1_500_000, 0)


async def test_a_lost_reply_leaves_no_second_lease(
    billing: Service, asking: Asking, rich: str
) -> None:
    first = await asking.ask(rich, want_nanos=1_000)
    again = await asking.ask(rich, want_nanos=1_000)

    assert again.lease_id == first.lease_id
    assert first.granted_nanos == OPENING_NANOS
    assert (await amounts(billing, rich))[1] == again.granted_nanos < 2 * OPENING_NANOS


async def test_wishes_leave_something_for_others_and_needs_get_the_last_cent(
    asking: Asking, rich: str
) -> None:
    wish = await asking.ask(rich, want_nanos=10**12)
    need = await asking.ask(
        rich, lease_id=wish.lease_id, want_nanos=10**12, need_nanos=wish.available_nanos
    )
    none = await asking.ask(rich, lease_id=wish.lease_id, want_nanos=1, need_nanos=1)

    assert wish.granted_nanos == BALANCE // 4
    assert need.granted_nanos == BALANCE
    assert none.refusal == leases_pb2.LEASE_REFUSAL_BALANCE
    assert none.held_elsewhere_nanos == 0


async def test_who_is_short_has_the_others_asked_to_give_back(
    bus: Client, asking: Asking, rich: str
) -> None:
    recalls = await bus.subscribe(topology.CREDIT_RECALLS)
    other = Asking(bus, "g2")
    held = await asking.ask(rich, need_nanos=BALANCE)
    refused = await other.ask(rich, need_nanos=COST_NANOS)
    recall = await recalled(recalls)
    await asking.ask(rich, lease_id=held.lease_id, returned_nanos=BALANCE - 1)
    served = await other.ask(rich, need_nanos=COST_NANOS)
    await recalls.unsubscribe()

    assert refused.refusal == leases_pb2.LEASE_REFUSAL_BALANCE
    assert refused.held_elsewhere_nanos == BALANCE
    assert recall == [rich]
    assert served.granted_nanos >= COST_NANOS


async def test_a_budget_is_shared_like_a_balance(
    bus: Client, billing: Service, asking: Asking, rich: str
) -> None:
    recalls = await bus.subscribe(topology.CREDIT_RECALLS)
    other = Asking(bus, "g2")
    await set_budget(billing, rich, COST_NANOS)
    held = await asking.ask(rich, need_nanos=COST_NANOS)
    await recalled(recalls)  # the budget was set
    refused = await other.ask(rich, need_nanos=COST_NANOS)
    assert await recalled(recalls) == [rich]
    await asking.ask(rich, lease_id=held.lease_id, returned_nanos=COST_NANOS)
    served = await other.ask(rich, need_nanos=COST_NANOS)
    await recalls.unsubscribe()

    assert refused.refusal == leases_pb2.LEASE_REFUSAL_BUDGET
    assert (refused.available_nanos, refused.held_elsewhere_nanos) == (0, COST_NANOS)
    assert served.granted_nanos == COST_NANOS


async def test_what_was_lent_on_a_higher_budget_is_called_back(
    bus: Client, billing: Service, asking: Asking, rich: str
) -> None:
    recalls = await bus.subscribe(topology.CREDIT_RECALLS)
    held = await asking.ask(rich, need_nanos=10 * COST_NANOS)
    await set_budget(billing, rich, COST_NANOS)
    assert await recalled(recalls) == [rich]
    # Whoever missed it is asked again when it asks for more.
    more = await asking.ask(rich, lease_id=held.lease_id, want_nanos=1)
    assert await recalled(recalls) == [rich]
    # Following the recall starts no other.
    await asking.ask(rich, lease_id=held.lease_id, returned_nanos=8 * COST_NANOS)
    with pytest.raises(TimeoutError):
        await recalls.next_msg(timeout=0.2)
    refused = await Asking(bus, "g2").ask(rich, need_nanos=COST_NANOS)
    await recalls.unsubscribe()

    assert more.refusal == leases_pb2.LEASE_REFUSAL_BUDGET
    assert more.granted_nanos == 10 * COST_NANOS
    assert (refused.available_nanos, refused.held_elsewhere_nanos) == (0, COST_NANOS)


async def test_a_charge_is_taken_from_its_lease_and_a_void_goes_back_into_it(
    billing: Service, asking: Asking, gateway: Gateway, rich: str
) -> None:
    lease = await asking.ask(rich, want_nanos=10 * COST_NANOS)
    kept = gateway.record(rich, lease_id=lease.lease_id)
    voided = gateway.record(rich, lease_id=lease.lease_id)
    await gateway.publish(kept, voided)
    await billing.posted(rich, 2)
    after = await asking.ask(rich, lease_id=lease.lease_id)
    await gateway.publish(voids=(gateway.void(voided),))

    assert after.posted_nanos == 2 * COST_NANOS
    await eventually(
        lambda: amounts(billing, rich),
        within_s=15,
        what="the void is posted",
        until=lambda held: held == (BALANCE - 10 * COST_NANOS, 9 * COST_NANOS, 0),
    )
    [charge] = await billing.transfers(request_id=f"req_{kept.request_id.hex()}")
    assert {p["account"]: p["amount_nanos"] for p in charge["postings"]} == {
        "tenant_held": -COST_NANOS,
        "revenue": COST_NANOS,
    }


async def test_what_a_lease_lacks_comes_from_the_balance_and_is_told(
    billing: Service, asking: Asking, gateway: Gateway, rich: str
) -> None:
    lease = await asking.ask(rich, want_nanos=COST_NANOS // 4)
    cost_nanos = 4 * OPENING_NANOS
    before = await billing.metric("busbar_billing_uncovered_nanos_total")
    record = gateway.record(rich, lease_id=lease.lease_id, input_tokens=cost_nanos // 100)
    await gateway.publish(record)
    await billing.posted(rich, 1)

    assert await amounts(billing, rich) == (BALANCE - cost_nanos, 0, 0)
    uncovered = await billing.metric("busbar_billing_uncovered_nanos_total") - before
    assert uncovered == cost_nanos - OPENING_NANOS


async def test_a_lease_of_another_tenant_pays_for_nothing(
    billing: Service, asking: Asking, gateway: Gateway, rich: str
) -> None:
    lease = await asking.ask(rich, want_nanos=10 * COST_NANOS)
    thief = await billing.tenant()
    await gateway.publish(gateway.record(thief, lease_id=lease.lease_id))
    await billing.posted(thief, 1)

    assert (await amounts(billing, rich))[1] == 10 * COST_NANOS
    assert await amounts(billing, thief) == (0, 0, COST_NANOS)


async def test_a_closed_lease_goes_back_when_its_usage_is_posted(
    billing: Service, asking: Asking, gateway: Gateway, rich: str
) -> None:
    lease = await asking.ask(rich, want_nanos=10 * COST_NANOS)
    await gateway.publish(gateway.record(rich, lease_id=lease.lease_id))
    closing = await asking.ask(rich, lease_id=lease.lease_id, closing=True)
    late = await asking.ask(rich, lease_id=lease.lease_id, want_nanos=1)

    assert closing.refusal == leases_pb2.LEASE_REFUSAL_UNSPECIFIED
    assert late.refusal == leases_pb2.LEASE_REFUSAL_CLOSED
    await eventually(
        lambda: amounts(billing, rich),
        within_s=20,
        what="the lease is closed",
        until=lambda held: held == (BALANCE - COST_NANOS, 0, 0),
    )


async def test_a_gateway_that_started_anew_gives_up_the_lease_of_its_last_run(
    bus: Client, billing: Service, asking: Asking, rich: str
) -> None:
    old = await asking.ask(rich, need_nanos=BALANCE)
    again = Asking(bus, asking.gateway_id, "run-2")
    await again.ask(rich, want_nanos=1)

    async def ask() -> leases_pb2.LeaseGrant:
        return await again.ask(rich, need_nanos=COST_NANOS)

    new = await eventually(
        ask, within_s=20, what="the old lease is closed", until=lambda grant: bool(grant.lease_id)
    )
    assert new.lease_id != old.lease_id
    assert (await amounts(billing, rich))[1] == new.granted_nanos


async def test_an_abandoned_lease_is_reclaimed_only_after_its_usage(  # noqa: PLR0917 - fixtures
    billing: Service,
    bus: Client,
    asking: Asking,
    gateway: Gateway,
    rich: str,
    pool: Database,
    admin: asyncpg.Connection,
) -> None:
    lease = await asking.ask(rich, want_nanos=10 * COST_NANOS)
    lease_id = UUID(bytes=lease.lease_id)
    await admin.execute(
        "UPDATE leases SET expires_at = now() - interval '1 s' WHERE lease_id = $1", lease_id
    )
    times = [0]
    leases = Leases(pool, Journal(pool, WARRANTS))
    reclaimer = Reclaimer(bus, leases, leases, uuid7, clock=lambda: times[0])

    await reclaimer.look()
    closing = "SELECT closing_at FROM leases WHERE lease_id = $1"
    assert await admin.fetchval(closing, lease_id) is None, "billing had just started"
    times[0] = TTL_MS // 1000
    await reclaimer.look()
    assert await admin.fetchval(closing, lease_id) is None, "billing had stood still"

    await gateway.publish(gateway.record(rich, lease_id=lease.lease_id))
    for times[0] in range(TTL_MS // 1000, 2 * TTL_MS // 1000 + 1):
        await reclaimer.look()
    await admin.execute(
        "UPDATE leases SET expires_at = now() - interval '1 s' WHERE lease_id = $1", lease_id
    )

    async def look() -> tuple[int, int, int]:
        await reclaimer.look()
        return await amounts(billing, rich)

    held = await eventually(
        look, within_s=20, what="the lease is reclaimed", until=lambda found: found[1] == 0
    )
    assert held == (BALANCE - COST_NANOS, 0, 0)


async def test_nonsense_is_answered_with_nothing(bus: Client, asking: Asking, rich: str) -> None:
    ask = leases_pb2.LeaseAsk(tenant_id=rich, want_nanos=1)
    unknown = await asking.ask("no-such-tenant", need_nanos=1)
    refused = [
        await bus.request(topology.CREDIT_LEASES, b"\xff\xff", timeout=5),
        await bus.request(topology.CREDIT_LEASES, b"", timeout=5),
    ]

    assert unknown.refusal == leases_pb2.LEASE_REFUSAL_UNKNOWN_TENANT
    assert [message.data for message in refused] == [b"", b""]
    assert not (await asking.call(ask, ask)).grants
    assert not (await asking.call(leases_pb2.LeaseAsk(tenant_id="'; --", want_nanos=1))).grants
    negative = await asking.ask(rich, want_nanos=-5, need_nanos=-5)
    assert not negative.lease_id


async def test_the_price_book_reaches_the_gateways(bus: Client, billing: Service) -> None:
    del billing
    bucket = await bus.jetstream(timeout=5).key_value(topology.PRICES.name)

    async def sheets() -> list[PriceSheet]:
        names = await bucket.keys()
        return [PriceSheet.FromString((await bucket.get(name)).value or b"") for name in names]

    [first, *_] = await eventually(sheets, within_s=10, what="prices are published")
    assert first.currency == "USD"
    assert {one.price_class for one in first.classes} >= {"default", "chat-small"}
