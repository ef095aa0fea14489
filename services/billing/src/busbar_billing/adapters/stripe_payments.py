"""Stripe: checkout sessions out, signed events in.

Imported only where Stripe is configured: its SDK costs every process that
loads it 35 MB and half a second.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any

import stripe
from busbar_errors import Rejected, Unavailable

from busbar_billing.adapters.http.payments import ReadsEvents
from busbar_billing.domain.names import checked_text
from busbar_billing.domain.payments import Payment, minor_of_nanos, nanos_of_minor
from busbar_billing.usecases.payments import ProviderEvent

TENANT = "busbar_tenant"
"""Where a checkout session says whose money it is."""
SIGNATURE_AGE_S_MAX = 300
CALL_TIMEOUT_S = 10.0
NAME_CHARACTERS_MAX = 255
_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
_UNREADABLE = (
    "the event cannot be read: it is no JSON of an event, or lacks what one of its type has "
    "(https://docs.stripe.com/api/events/object)"
)
_MINOR_MAX = 2**63 - 1
_PAID = {"checkout.session.completed", "checkout.session.async_payment_succeeded"}


class StripeCheckout:
    """Starts checkouts."""

    def __init__(self, api_key: str, api_base: str | None = None) -> None:
        self._client = stripe.StripeClient(
            api_key,
            base_addresses={"api": api_base} if api_base else None,
            http_client=stripe.RequestsClient(timeout=CALL_TIMEOUT_S),
            max_network_retries=2,
        )

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
        """Return id and address of a page where the tenant pays.

        Raises Rejected for what Stripe refuses and Unavailable when it does not answer.
        """
        line = {
            "quantity": 1,
            "price_data": {
                "currency": currency.lower(),
                "unit_amount": minor_of_nanos(amount_nanos, currency),
                "product_data": {"name": "Inference credit"},
            },
        }
        params: Any = {
            "mode": "payment",
            "client_reference_id": tenant_id,
            "metadata": {TENANT: tenant_id},
            "line_items": [line],
            "success_url": success_url,
            "cancel_url": cancel_url,
        }
        try:
            session = await asyncio.to_thread(
                self._client.v1.checkout.sessions.create,
                params,
                {"idempotency_key": idempotency_key},
            )
        except (stripe.InvalidRequestError, stripe.IdempotencyError) as error:
            raise Rejected(f"Stripe refused the checkout: {error.user_message or error}") from error
        except stripe.StripeError as error:
            raise Unavailable(f"Stripe does not answer: {error.user_message or error}") from error
        return session.id, session.url or ""


def event_reader(secret: str) -> ReadsEvents:
    """What tells Stripe's events from others, by the endpoint's signing secret."""

    def read(payload: bytes, signature: str | None) -> ProviderEvent:
        return read_event(payload, signature, secret)

    return read


def read_event(payload: bytes, signature: str | None, secret: str) -> ProviderEvent:
    """Return an authentic event; raise Rejected for one that is forged, stale or broken."""
    try:
        event = stripe.Webhook.construct_event(payload, signature, secret, SIGNATURE_AGE_S_MAX)
        told = _told(event.type, event.data.object.to_dict())
        event_id = checked_text("event id", event.id, NAME_CHARACTERS_MAX)
        kind = checked_text("event type", event.type, NAME_CHARACTERS_MAX)
        return ProviderEvent(event_id, kind, storable_json(payload), told)
    except stripe.SignatureVerificationError as error:
        raise Rejected(f"the event is not authentic: {error.user_message or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Rejected(_UNREADABLE) from error


def storable_json(payload: bytes) -> bytes:
    """JSON without what no database takes as text, NUL and lone surrogates: what a payer typed must
    not keep the payment from being stored. Raises ValueError for numbers that no payer types and no
    database takes: NaN, 1e999."""
    text = json.dumps(json.loads(payload), ensure_ascii=False, allow_nan=False)
    return _NUL.sub(r"\1\\ufffd", text).encode("utf-8", "replace")


def _told(kind: str, body: Mapping[str, Any]) -> Payment | None:
    """What an event says of a payment; None when it moves no money of ours."""
    if kind in _PAID and body["mode"] == "payment" and body["payment_status"] == "paid":
        metadata = body.get("metadata") or {}
        tenant_id = metadata.get(TENANT) or body.get("client_reference_id") or ""
        return _payment(body, tenant_id=str(tenant_id), paid="amount_total")
    if kind == "charge.refunded":
        return _payment(body, refunded="amount_refunded")
    if kind == "charge.dispute.closed" and body["status"] == "lost":
        return _payment(body, lost="amount")
    return None


def _payment(
    body: Mapping[str, Any],
    *,
    tenant_id: str = "",
    paid: str | None = None,
    refunded: str | None = None,
    lost: str | None = None,
) -> Payment | None:
    intent = body.get("payment_intent")
    if not intent:
        return None  # not of a checkout
    if not isinstance(intent, str):
        raise Rejected("the event cannot be read: payment_intent must be an id")
    currency = str(body["currency"]).upper()

    def nanos(field: str | None) -> int:
        return nanos_of_minor(_minor(body, field), currency) if field else 0

    return Payment(
        reference=f"stripe:{intent}",
        currency=currency,
        tenant_id=tenant_id,
        paid_nanos=nanos(paid),
        refunded_nanos=nanos(refunded),
        lost_nanos=nanos(lost),
    )


def _minor(body: Mapping[str, Any], field: str) -> int:
    """An amount in minor units; as strict as all our own routes are with amounts."""
    amount = body[field]
    if type(amount) is not int or abs(amount) > _MINOR_MAX:
        raise Rejected(
            f"the event cannot be read: {field} must be a whole number of minor units (cents)"
        )
    return amount
