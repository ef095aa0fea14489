"""Starting checkouts through Stripe's SDK, at a server that answers in Stripe's words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import pytest
from busbar_billing.adapters.stripe_payments import StripeCheckout
from busbar_errors import Rejected, Unavailable
from busbar_observability.ops import serve_http
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

SESSION = {"id": "cs_1", "object": "checkout.session", "url": "https://checkout.example/cs_1"}


@dataclass
class Provider:
    """What was asked, and what is answered."""

    url: str = ""
    status: int = 200
    answer: dict[str, Any] = field(default_factory=lambda: dict(SESSION))
    asked: list[tuple[str, str, dict[str, list[str]]]] = field(
        default_factory=list[tuple[str, str, dict[str, list[str]]]]
    )

    async def sessions(self, request: Request) -> JSONResponse:
        """POST /v1/checkout/sessions."""
        body = parse_qs((await request.body()).decode())
        headers = request.headers
        self.asked.append((headers["authorization"], headers["idempotency-key"], body))
        return JSONResponse(self.answer, self.status)


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    made = Provider()
    app = Starlette(routes=[Route("/v1/checkout/sessions", made.sessions, methods=["POST"])])
    async with serve_http(app, "127.0.0.1", 0) as port:
        made.url = f"http://127.0.0.1:{port}"
        yield made


async def start(provider: Provider, amount_nanos: int = 25 * 10**9) -> tuple[str, str]:
    return await StripeCheckout("sk_test_1", provider.url).start(
        tenant_id="acme",
        amount_nanos=amount_nanos,
        currency="USD",
        success_url="https://shop.example/ok",
        cancel_url="https://shop.example/no",
        idempotency_key="acme:1",
    )


async def test_a_checkout_says_whose_and_how_much(provider: Provider) -> None:
    assert await start(provider) == ("cs_1", "https://checkout.example/cs_1")

    [(authorization, key, body)] = provider.asked
    assert authorization == "Bearer sk_test_1"
    assert key == "acme:1"
    assert body["metadata[busbar_tenant]"] == ["acme"]
    assert body["line_items[0][price_data][unit_amount]"] == ["2500"]
    assert body["line_items[0][price_data][currency]"] == ["usd"]
    assert body["mode"] == ["payment"]


async def test_what_stripe_refuses_is_refused_with_its_reason(provider: Provider) -> None:
    provider.status = 400
    message = "The amount is too small"
    provider.answer = {"error": {"type": "invalid_request_error", "message": message}}

    with pytest.raises(Rejected, match=message):
        await start(provider)


async def test_a_stripe_that_fails_is_tried_again_and_then_unavailable(provider: Provider) -> None:
    provider.status = 500
    provider.answer = {"error": {"type": "api_error", "message": "broken"}}

    with pytest.raises(Unavailable):
        await start(provider)
    assert [key for _, key, _ in provider.asked] == ["acme:1"] * 3


async def test_a_fraction_of_a_cent_never_reaches_stripe(provider: Provider) -> None:
    with pytest.raises(Rejected):
        await start(provider, amount_nanos=25 * 10**9 + 1)

    assert provider.asked == []
