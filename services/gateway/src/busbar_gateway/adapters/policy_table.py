"""What tenants may do, in memory, filled by watching the bucket that billing writes."""

from __future__ import annotations

import structlog
from busbar_contracts.billing.v1.tenants_pb2 import PriorityBand, TenantPolicy
from busbar_messaging import topology
from busbar_messaging.bucket_changes import Change, Current, Deleted
from busbar_messaging.watching import follow
from google.protobuf.message import DecodeError
from nats.aio.client import Client

from busbar_gateway.domain.policies import UNLIMITED, WEIGHT_MAX, Band, Policy

log = structlog.get_logger()

_BANDS = {
    PriorityBand.PRIORITY_BAND_INTERACTIVE: Band.INTERACTIVE,
    PriorityBand.PRIORITY_BAND_BATCH: Band.BATCH,
}


class PolicyTable:
    """The policies of all tenants. Keeps answering from memory while the bus is away."""

    def __init__(self) -> None:
        self._policies: dict[str, Policy] = {}
        self.read_once = False

    def current(self, tenant_id: str) -> Policy:
        """The tenant's policy; without limits for one of which billing has said nothing."""
        return self._policies.get(tenant_id, UNLIMITED)

    def apply(self, change: Change) -> None:
        """Take one change of the bucket; what cannot be read changes nothing."""
        if isinstance(change, Current):
            self.read_once = True
        elif isinstance(change, Deleted):
            self._policies.pop(change.key, None)
        else:
            try:
                policy = TenantPolicy.FromString(change.value)
            except DecodeError:
                log.warning("unreadable tenant policy", tenant=change.key)
                return
            self._policies[change.key] = policy_of(policy)

    async def follow(self, client: Client) -> None:
        """Keep up with the bucket, for ever."""
        async for change in follow(client, topology.TENANTS.name):
            self.apply(change)


def policy_of(said: TenantPolicy) -> Policy:
    """Translate what billing wrote."""
    return Policy(
        band=_BANDS.get(said.band, Band.STANDARD),
        weight=min(WEIGHT_MAX, said.weight or 1),
        requests_per_minute=said.requests_per_minute,
        tokens_per_minute=said.tokens_per_minute,
        max_in_flight=said.max_in_flight,
        suspended_reason=said.suspended_reason,
    )
