"""The `tenants` bucket, from which gateways learn what each tenant may do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping

from busbar_contracts.billing.v1.tenants_pb2 import (
    PRIORITY_BAND_BATCH,
    PRIORITY_BAND_INTERACTIVE,
    PRIORITY_BAND_STANDARD,
    PriorityBand,
    TenantPolicy,
)
from busbar_messaging import topology
from nats.aio.client import Client

from busbar_billing.adapters.bus.mirrored_bucket import MirroredBucket
from busbar_billing.adapters.postgres.plans import Plans
from busbar_billing.domain.plans import Band, Terms

_BANDS: dict[Band, PriorityBand.ValueType] = {
    Band.INTERACTIVE: PRIORITY_BAND_INTERACTIVE,
    Band.STANDARD: PRIORITY_BAND_STANDARD,
    Band.BATCH: PRIORITY_BAND_BATCH,
}


class PolicyDirectory:
    """Tells the gateways of every tenant; a gateway that knows none would apply no limits."""

    def __init__(self, client: Client, plans: Plans, wanted: asyncio.Event) -> None:
        self.bucket = MirroredBucket(client, topology.TENANTS.name, _AllTerms(plans), wanted)

    async def refresh(self, tenant_ids: Collection[str]) -> bool:
        """Tell the gateways what the database says of these; False when the bus is away."""
        return await self.bucket.refresh(tenant_ids)

    async def ensure(self, tenant_id: str) -> bool:
        """See that gateways know this tenant; False when the bus is away."""
        return self.bucket.holds(tenant_id) or await self.refresh([tenant_id])


class _AllTerms:
    def __init__(self, plans: Plans) -> None:
        self._plans = plans

    async def entries(self, names: Collection[str]) -> Mapping[str, bytes]:
        return encode_policies(await self._plans.terms_of(names))

    async def pages(self) -> AsyncIterator[Mapping[str, bytes]]:
        async for terms in self._plans.all_terms():
            yield encode_policies(terms)


def encode_policies(terms: Collection[Terms]) -> dict[str, bytes]:
    """The bucket's entries; the same terms always give the same bytes."""
    return {one.tenant_id: _encode(one) for one in terms}


def _encode(terms: Terms) -> bytes:
    limits = terms.limits
    message = TenantPolicy(
        tenant_id=terms.tenant_id,
        plan_id=terms.plan_id or "",
        currency=terms.currency,
        requests_per_minute=limits.requests_per_minute,
        tokens_per_minute=limits.tokens_per_minute,
        max_in_flight=limits.max_in_flight,
        band=_BANDS[limits.band],
        weight=limits.weight,
        suspended_reason=terms.suspended_reason,
    )
    return message.SerializeToString(deterministic=True)
