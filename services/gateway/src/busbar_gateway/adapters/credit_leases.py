"""Asking billing for credit, over core NATS."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog
from busbar_contracts.billing.v1.leases_pb2 import (
    CreditRecall,
    LeaseAsk,
    LeaseCall,
    LeaseGrant,
    LeaseRefusal,
    LeaseReply,
)
from busbar_messaging.topology import CREDIT_LEASES, CREDIT_RECALLS
from google.protobuf.message import DecodeError
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from busbar_gateway.domain.credit import Ask, Granted, Refused

log = structlog.get_logger()

TIMEOUT_S = 4.0
"""Whoever waits is refused when billing does not answer within it: less than requests wait, and
more than a busy billing takes. One that is gone is known to be at once."""
_REFUSED = {
    LeaseRefusal.LEASE_REFUSAL_BALANCE: Refused.BALANCE,
    LeaseRefusal.LEASE_REFUSAL_BUDGET: Refused.BUDGET,
    LeaseRefusal.LEASE_REFUSAL_SUSPENDED: Refused.SUSPENDED,
    LeaseRefusal.LEASE_REFUSAL_UNKNOWN_TENANT: Refused.UNKNOWN,
}


class CreditDesk:
    """Billing, as this gateway asks it."""

    def __init__(self, client: Client, *, gateway_id: str, run_id: str) -> None:
        self._client = client
        self._gateway_id = gateway_id
        self._run_id = run_id
        self._away = False

    async def ask(self, asks: Sequence[Ask]) -> list[Granted] | None:
        """One answer for each ask; None when billing cannot be reached."""
        call = LeaseCall(
            gateway_id=self._gateway_id, run_id=self._run_id, asks=[_write(ask) for ask in asks]
        )
        try:
            message = await self._client.request(
                CREDIT_LEASES, call.SerializeToString(), timeout=TIMEOUT_S
            )
            grants = LeaseReply.FromString(message.data).grants
        except (NatsError, TimeoutError, OSError, DecodeError) as error:
            return self._unreached(repr(error))
        if len(grants) != len(asks):  # it is there, but its database is not
            return self._unreached("it cannot grant now")
        if self._away:
            self._away = False
            log.info("billing grants credit again")
        return [_read(grant) for grant in grants]

    async def hear_recalls(self, recall: Callable[[Sequence[str]], None]) -> None:
        """Call `recall` with tenants of which another gateway is short, from now on."""

        async def heard(message: Msg) -> None:
            try:
                recall(CreditRecall.FromString(message.data).tenant_ids)
            except DecodeError:
                log.warning("unreadable recall of credit")

        await self._client.subscribe(CREDIT_RECALLS, cb=heard)

    def _unreached(self, reason: str) -> None:
        if not self._away:
            self._away = True
            log.warning("billing does not grant credit", reason=reason)


def _write(ask: Ask) -> LeaseAsk:
    return LeaseAsk(
        tenant_id=ask.tenant_id,
        lease_id=ask.lease_id,
        want_nanos=ask.want_nanos,
        need_nanos=ask.need_nanos,
        spent_nanos=ask.spent_nanos,
        reserved_nanos=ask.reserved_nanos,
        returned_nanos=ask.returned_nanos,
        closing=ask.closing,
        refused_below_nanos=ask.refused_below_nanos,
    )


def _read(grant: LeaseGrant) -> Granted:
    return Granted(
        tenant_id=grant.tenant_id,
        lease_id=grant.lease_id,
        granted_nanos=grant.granted_nanos,
        posted_nanos=grant.posted_nanos,
        currency=grant.currency,
        ttl_s=grant.ttl_ms / 1000,
        closed=grant.refusal == LeaseRefusal.LEASE_REFUSAL_CLOSED,
        refused=_REFUSED.get(grant.refusal),
        elsewhere_nanos=grant.held_elsewhere_nanos + grant.available_nanos,
        retry_unix_ms=grant.retry_unix_ms,
    )
