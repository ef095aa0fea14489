"""Facts of billing for whoever listens. The ledger is the truth; an event lost in a crash is not
repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import structlog
from busbar_contracts.billing.v1 import events_pb2
from busbar_errors import Unavailable
from busbar_messaging.connection import publish_durably
from busbar_messaging.topology import event_subject
from google.protobuf.message import Message
from nats.aio.client import Client
from uuid_utils.compat import uuid7

from busbar_billing.adapters import metrics
from busbar_billing.adapters.postgres.budgets import BudgetAlert
from busbar_billing.domain.audit.findings import Breach
from busbar_billing.domain.balance_alerts import Level, Watched
from busbar_billing.domain.keys import ApiKey
from busbar_billing.usecases.post_usage import RatedRecord, Uncovered
from busbar_billing.usecases.tenants import Tenant

log = structlog.get_logger()

WAITING_MAX = 1_000
GIVE_UP_AFTER = timedelta(seconds=15)


class Events:
    """Publishes in the background, in order; drops and counts when too many wait."""

    def __init__(self, client: Client) -> None:
        self._jetstream = client.jetstream(timeout=5)
        self._waiting: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(WAITING_MAX)

    def usage_posted(self, charged: Sequence[RatedRecord]) -> None:
        """Charges were posted, in one transaction."""
        charges = [
            events_pb2.PostedCharge(
                request_id=one.record.request_id.bytes,
                tenant_id=one.record.tenant_id,
                amount_nanos=one.rating.charge_nanos,
                currency=one.rating.currency,
                transfer_id=str(one.transfer_id),
            )
            for one in charged
        ]
        self._enqueue("usage_posted", events_pb2.UsagePosted(charges=charges))

    def charges_uncovered(self, uncovered: Sequence[Uncovered]) -> None:
        """Charges came that no lease covered, in one transaction."""
        tenants = [
            events_pb2.UncoveredCharges(
                tenant_id=one.tenant_id,
                currency=one.currency,
                from_available_nanos=one.from_available_nanos,
                receivable_nanos=one.receivable_nanos,
            )
            for one in uncovered
        ]
        self._enqueue("charges_uncovered", events_pb2.ChargesUncovered(tenants=tenants))

    def tenant_created(self, tenant: Tenant) -> None:
        """A tenant was created."""
        event = events_pb2.TenantCreated(tenant_id=tenant.tenant_id, name=tenant.name)
        self._enqueue("tenant_created", event)

    def key_created(self, key: ApiKey) -> None:
        """A key was created."""
        event = events_pb2.ApiKeyCreated(key_id=key.key_id, tenant_id=key.tenant_id)
        self._enqueue("api_key_created", event)

    def key_revoked(self, key: ApiKey) -> None:
        """A key was revoked."""
        event = events_pb2.ApiKeyRevoked(key_id=key.key_id, tenant_id=key.tenant_id)
        self._enqueue("api_key_revoked", event)

    def key_rotated(self, key: ApiKey) -> None:
        """A key was given a new secret."""
        event = events_pb2.ApiKeyRotated(
            key_id=key.key_id,
            tenant_id=key.tenant_id,
            old_valid_until_unix_ms=key.previous.until_unix_ms if key.previous else 0,
        )
        self._enqueue("api_key_rotated", event)

    def tenant_suspended(self, tenant_id: str, reason: str) -> None:
        """Nothing of the tenant is served any more."""
        event = events_pb2.TenantSuspended(tenant_id=tenant_id, reason=reason)
        self._enqueue("tenant_suspended", event)

    def tenant_resumed(self, tenant_id: str) -> None:
        """The tenant is served again."""
        self._enqueue("tenant_resumed", events_pb2.TenantResumed(tenant_id=tenant_id))

    def budget_reached(self, alert: BudgetAlert) -> None:
        """A tenant has spent a share of its budget."""
        event = events_pb2.BudgetReached(
            tenant_id=alert.tenant_id,
            percent=alert.percent,
            budget_nanos=alert.budget_nanos,
            spent_nanos=alert.spent_nanos,
            currency=alert.currency,
            hard=alert.hard,
        )
        self._enqueue("budget_reached", event)

    def balance_told(self, watched: Watched, level: Level) -> None:
        """A tenant's balance is low, or exhausted."""
        if level is Level.EXHAUSTED:
            exhausted = events_pb2.BalanceExhausted(
                tenant_id=watched.tenant_id,
                currency=watched.currency,
                balance_nanos=watched.balance_nanos,
            )
            self._enqueue("balance_exhausted", exhausted)
            return
        low = events_pb2.BalanceLow(
            tenant_id=watched.tenant_id,
            currency=watched.currency,
            balance_nanos=watched.balance_nanos,
            threshold_nanos=watched.low_nanos,
        )
        self._enqueue("balance_low", low)

    def webhook_disabled(self, tenant_id: str, endpoint_id: str, reason: str) -> None:
        """Nothing is sent to a webhook endpoint any more."""
        event = events_pb2.WebhookDisabled(
            tenant_id=tenant_id, endpoint_id=endpoint_id, reason=reason
        )
        self._enqueue("webhook_disabled", event)

    def audit_breached(self, breach: Breach, found_unix_ms: int) -> None:
        """The auditor found something that must not be."""
        event = events_pb2.AuditBreached(
            check=breach.check.value,
            subject=breach.subject,
            detail=breach.detail,
            found_unix_ms=found_unix_ms,
        )
        self._enqueue("audit_breached", event)

    def _enqueue(self, fact: str, event: Message) -> None:
        try:
            self._waiting.put_nowait((event_subject("billing", fact), event.SerializeToString()))
        except asyncio.QueueFull:
            metrics.EVENTS_DROPPED.inc()

    async def run(self) -> None:
        """Publish what is enqueued, for ever."""
        while True:
            subject, payload = await self._waiting.get()
            try:
                await publish_durably(
                    self._jetstream,
                    subject,
                    payload,
                    message_id=uuid7().hex,
                    give_up_after=GIVE_UP_AFTER,
                )
            except Unavailable as error:
                metrics.EVENTS_DROPPED.inc()
                log.warning("event dropped", subject=subject, reason=error.reason)
            finally:
                self._waiting.task_done()

    async def flush(self, timeout: timedelta) -> None:
        """Wait until everything enqueued is published, for at most `timeout`."""
        try:
            await asyncio.wait_for(self._waiting.join(), timeout.total_seconds())
        except TimeoutError:
            metrics.EVENTS_DROPPED.inc(self._waiting.qsize())
