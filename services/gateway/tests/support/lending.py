"""Billing as a gateway sees it: lends from balances, and says what things cost."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field

from busbar_contracts.billing.v1 import leases_pb2, prices_pb2
from busbar_messaging import topology
from nats.aio.client import Client
from nats.aio.msg import Msg

TTL_MS = 30_000
PLENTY = 10**15
REQUEST_NANOS = 1_000
"""What a request costs, whatever it does."""
TOKEN_NANOS = 10
"""What a generated token costs besides."""
COMPUTE_CLASS = "by-compute"
"""A price class of which a microsecond of compute costs a nano besides."""


@dataclass
class FakeBilling:
    """Keeps the rules of busbar.billing.v1.leases, in memory."""

    client: Client
    gateway_id: str
    """The one gateway that it answers."""
    balances: dict[str, int] = field(default_factory=dict)
    """Outside of leases; a tenant that is not here has plenty."""
    leases: dict[bytes, leases_pb2.LeaseGrant] = field(default_factory=dict)
    asks: list[leases_pb2.LeaseAsk] = field(default_factory=list)
    silent: bool = False
    answers_after_s: float = 0.0

    async def start(self) -> None:
        await self.publish_prices(version=1, request_nanos=REQUEST_NANOS)
        await self.client.subscribe(topology.CREDIT_LEASES, cb=self._answer)

    async def publish_prices(self, *, version: int, request_nanos: int) -> None:
        """Everybody's prices from now on."""
        sheet = prices_pb2.PriceSheet(version=version, currency="USD", charge_quantum_nanos=1)
        prices = sheet.classes.add(price_class="default").components
        request = prices_pb2.PRICE_COMPONENT_REQUEST
        token = prices_pb2.PRICE_COMPONENT_OUTPUT_TOKEN
        prices.add(component=request, amount_nanos=request_nanos, per_units=1)
        prices.add(component=token, amount_nanos=TOKEN_NANOS, per_units=1)
        timed = sheet.classes.add(price_class=COMPUTE_CLASS).components
        compute = prices_pb2.PRICE_COMPONENT_COMPUTE_SECOND
        timed.add(component=request, amount_nanos=request_nanos, per_units=1)
        timed.add(component=compute, amount_nanos=1_000_000, per_units=1)
        bucket = await self.client.jetstream().key_value(topology.PRICES.name)
        await bucket.put("USD.1", sheet.SerializeToString())

    async def recall(self, tenant_id: str) -> None:
        message = leases_pb2.CreditRecall(tenant_ids=[tenant_id])
        await self.client.publish(topology.CREDIT_RECALLS, message.SerializeToString())

    def held(self, tenant_id: str) -> int:
        return sum(one.granted_nanos for one in self.leases.values() if one.tenant_id == tenant_id)

    async def _answer(self, message: Msg) -> None:
        call = leases_pb2.LeaseCall.FromString(message.data)
        if self.silent or call.gateway_id != self.gateway_id:
            return
        await asyncio.sleep(self.answers_after_s)
        self.asks += call.asks
        reply = leases_pb2.LeaseReply(grants=[self._grant(ask) for ask in call.asks])
        await self.client.publish(message.reply, reply.SerializeToString())

    def _grant(self, ask: leases_pb2.LeaseAsk) -> leases_pb2.LeaseGrant:
        free = self.balances.get(ask.tenant_id, PLENTY)
        known = self.leases.get(ask.lease_id)
        if ask.lease_id and known is None:
            refusal = leases_pb2.LEASE_REFUSAL_CLOSED
            return leases_pb2.LeaseGrant(tenant_id=ask.tenant_id, refusal=refusal)
        if ask.closing:
            self.leases.pop(ask.lease_id)
            self.balances[ask.tenant_id] = free + ask.returned_nanos
            return leases_pb2.LeaseGrant(tenant_id=ask.tenant_id)
        held = 0 if free < ask.need_nanos else max(ask.need_nanos, min(ask.want_nanos, free // 4))
        self.balances[ask.tenant_id] = free - held
        lease = known or leases_pb2.LeaseGrant(
            tenant_id=ask.tenant_id, lease_id=secrets.token_bytes(16), currency="USD", ttl_ms=TTL_MS
        )
        lease.granted_nanos += held
        lease.available_nanos = free - held
        short = ask.want_nanos and not held
        lease.refusal = (
            leases_pb2.LEASE_REFUSAL_BALANCE if short else leases_pb2.LEASE_REFUSAL_UNSPECIFIED
        )
        if not known and not held:
            lease.lease_id = b""
            return lease
        self.leases[lease.lease_id] = lease
        return lease
