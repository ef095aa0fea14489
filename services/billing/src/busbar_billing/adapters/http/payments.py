"""Routes of payments: a page to pay on, what the provider told us, and where it tells us."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Protocol
from urllib.parse import urlsplit

import structlog
from busbar_errors import Rejected
from fastapi import APIRouter, Request
from pydantic import AfterValidator, BaseModel, Field
from uuid_utils.compat import uuid7

from busbar_billing.adapters import metrics
from busbar_billing.adapters.http import schemas
from busbar_billing.adapters.http.paging import PAGE_DEFAULT, Cursor, Limit, decode_cursor, page
from busbar_billing.adapters.postgres.payments import Payments, StoredEvent
from busbar_billing.adapters.postgres.tenants import Tenants
from busbar_billing.domain.money import checked_top_up
from busbar_billing.usecases.payments import ORDERLY, ProviderEvent, take_event

log = structlog.get_logger()

_URL_CHARS_MAX = 2_000


class Checkout(Protocol):
    """Starts checkouts at the payment provider."""

    async def start(
        self,
        *,
        tenant_id: str,
        amount_nanos: int,
        currency: str,
        success_url: str,
        cancel_url: str,
        idempotency_key: str,
    ) -> tuple[str, str]:
        """Return id and address of a page where the tenant pays."""
        ...


class ReadsEvents(Protocol):
    """Tells authentic events from others."""

    def __call__(self, payload: bytes, signature: str | None) -> ProviderEvent:
        """Return an authentic event; raise Rejected otherwise."""
        ...


@dataclass(frozen=True, slots=True)
class PaymentProvider:
    """What is configured of the payment provider; nothing by default."""

    checkout: Checkout | None = None
    read_event: ReadsEvents | None = None


def _web_address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must be an http or https address")
    return url


WebAddress = Annotated[str, Field(max_length=_URL_CHARS_MAX), AfterValidator(_web_address)]


class WantedCheckout(BaseModel):
    """What the tenant wants to pay, and where it goes afterwards."""

    amount_nanos: int
    success_url: WebAddress
    cancel_url: WebAddress
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=200)


class CheckoutAnswer(BaseModel):
    """A page where the tenant pays."""

    checkout_id: str
    url: str


class ProviderEventAnswer(BaseModel):
    """An event and what became of it: posted, stored, waiting (for another event of the payment,
    such as that it was paid), nothing new, or why it was refused."""

    event_id: str
    type: str
    outcome: str
    received_at: datetime


class TakenAnswer(BaseModel):
    """What became of an event that was sent."""

    outcome: str


async def start_checkout(
    checkout: Checkout | None, tenants: Tenants, tenant_id: str, wanted: WantedCheckout
) -> CheckoutAnswer:
    """Start one in the tenant's currency; raise Rejected where no provider is configured."""
    tenant = await tenants.get(tenant_id)
    if checkout is None:
        raise Rejected("no payment provider is configured: set BUSBAR_STRIPE_API_KEY")
    key = wanted.idempotency_key or uuid7().hex
    checkout_id, url = await checkout.start(
        tenant_id=tenant_id,
        amount_nanos=checked_top_up(wanted.amount_nanos),
        currency=tenant.currency,
        success_url=wanted.success_url,
        cancel_url=wanted.cancel_url,
        idempotency_key=f"{tenant_id}:{key}",
    )
    return CheckoutAnswer(checkout_id=checkout_id, url=url)


def payment_routes(payments: Payments, tenants: Tenants, checkout: Checkout | None) -> APIRouter:
    """The operator's: POST /tenants/{id}/checkouts, GET /payments/events."""
    router = APIRouter(prefix="/admin/v1", tags=["payments"])

    @router.post("/tenants/{tenant_id}/checkouts", status_code=201)
    async def start(tenant_id: str, wanted: WantedCheckout) -> CheckoutAnswer:
        """Begin a payment of a tenant."""
        return await start_checkout(checkout, tenants, tenant_id, wanted)

    @router.get("/payments/events")
    async def events(
        limit: Limit = PAGE_DEFAULT, cursor: Cursor = None
    ) -> schemas.Page[ProviderEventAnswer]:
        """List what the payment provider told."""
        rows = await payments.events(limit + 1, *_read_cursor(decode_cursor(cursor, "")))
        return page(rows, limit, lambda row: f"{row.received_at.isoformat()} {row.event_id}", _show)

    return router


def provider_routes(payments: Payments, read_event: ReadsEvents) -> APIRouter:
    """The provider's: POST /webhooks/stripe. Its signature is what lets it in."""
    router = APIRouter(tags=["webhooks"])

    @router.post("/webhooks/stripe")
    async def take(request: Request) -> TakenAnswer:
        """Take a signed event of the payment provider."""
        payload = await request.body()
        event = read_event(payload, request.headers.get("stripe-signature"))
        outcome = await take_event(payments, event, uuid7)
        if outcome not in ORDERLY:
            metrics.PAYMENTS_REFUSED.inc()
            log.error("payment refused", event_id=event.event_id, reason=outcome)
        return TakenAnswer(outcome=outcome)

    return router


def _show(event: StoredEvent) -> ProviderEventAnswer:
    return ProviderEventAnswer(
        event_id=event.event_id,
        type=event.type,
        outcome=event.outcome,
        received_at=event.received_at,
    )


def _read_cursor(text: str) -> tuple[datetime | None, str]:
    if not text:
        return None, ""
    moment, _, event_id = text.partition(" ")
    try:
        return datetime.fromisoformat(moment), event_id
    except ValueError as error:
        raise Rejected("this cursor is not one that was given out") from error
