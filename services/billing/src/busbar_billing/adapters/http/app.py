"""The admin API as an application."""

from __future__ import annotations

from dataclasses import dataclass

from busbar_observability.operator_gate import OperatorGate, OperatorToken
from fastapi import FastAPI
from starlette.types import ASGIApp

from busbar_billing.adapters.bus.events import Events
from busbar_billing.adapters.bus.key_directory import KeyDirectoryBucket
from busbar_billing.adapters.bus.price_directory import PriceDirectoryBucket
from busbar_billing.adapters.http import errors
from busbar_billing.adapters.http.adjustments import adjustment_routes
from busbar_billing.adapters.http.keys import key_routes
from busbar_billing.adapters.http.ledger import ledger_routes
from busbar_billing.adapters.http.prices import price_routes
from busbar_billing.adapters.http.tenants import tenant_routes
from busbar_billing.adapters.http.usage import usage_routes
from busbar_billing.adapters.postgres.adjustments import Adjustments
from busbar_billing.adapters.postgres.journal import Journal
from busbar_billing.adapters.postgres.keys import Keys
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.adapters.postgres.promotions import Credits
from busbar_billing.adapters.postgres.reading import Reader
from busbar_billing.adapters.postgres.rollups import Rollups
from busbar_billing.adapters.postgres.tenants import Tenants


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes work with."""

    tenants: Tenants
    keys: Keys
    journal: Journal
    prices: Prices
    adjustments: Adjustments
    credits: Credits
    reader: Reader
    rollups: Rollups
    directory: KeyDirectoryBucket
    price_directory: PriceDirectoryBucket
    events: Events


def admin_application(parts: Parts, operator_token: str, hmac_secret: bytes) -> ASGIApp:
    """Every route, behind the operator's token; documented at /openapi.json."""
    app = FastAPI(
        title="Busbar billing",
        version="1",
        description="Tenants, API keys, prices, usage and the ledger. Operators only.",
        docs_url=None,
        redoc_url=None,
        responses=errors.DOCUMENTED,
        # It would trace every call once a tracer is configured; what is not sampled has no span.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    errors.install(app)
    app.include_router(tenant_routes(parts.tenants, parts.journal, parts.events))
    app.include_router(
        key_routes(parts.keys, parts.tenants, parts.directory, parts.events, hmac_secret)
    )
    app.include_router(usage_routes(parts.rollups, parts.tenants))
    app.include_router(ledger_routes(parts.reader, parts.prices))
    app.include_router(price_routes(parts.prices, parts.tenants, parts.price_directory))
    app.include_router(adjustment_routes(parts.adjustments, parts.tenants, parts.credits))
    return OperatorGate(app, OperatorToken(operator_token))
