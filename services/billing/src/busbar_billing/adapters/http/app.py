"""The operator's and the customers' API as applications."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from busbar_observability.known_queries import refuse_unknown_queries
from busbar_observability.operation_summaries import summarised
from busbar_observability.operator_gate import BoundedBodies, OperatorGate, OperatorToken
from fastapi import Depends, FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from busbar_billing.adapters.auditor import Auditor
from busbar_billing.adapters.bus.backlog import UsageStream
from busbar_billing.adapters.bus.credit_leases import Recalls
from busbar_billing.adapters.bus.events import Events
from busbar_billing.adapters.bus.key_directory import KeyDirectory
from busbar_billing.adapters.bus.policy_directory import PolicyDirectory
from busbar_billing.adapters.bus.price_directory import PriceDirectoryBucket
from busbar_billing.adapters.http import account, account_keys, errors
from busbar_billing.adapters.http.account_gate import AccountGate, NoticesUse, calling_tenant
from busbar_billing.adapters.http.account_view import opens_views
from busbar_billing.adapters.http.adjustments import adjustment_routes, credit_routes
from busbar_billing.adapters.http.audit import audit_routes
from busbar_billing.adapters.http.energy import energy_routes
from busbar_billing.adapters.http.invoicing import invoicing_routes
from busbar_billing.adapters.http.keys import key_routes
from busbar_billing.adapters.http.leakage import leakage_routes
from busbar_billing.adapters.http.ledger import ledger_routes
from busbar_billing.adapters.http.payments import (
    PaymentProvider,
    payment_routes,
    provider_routes,
)
from busbar_billing.adapters.http.plans import plan_routes, terms_routes
from busbar_billing.adapters.http.prices import price_routes
from busbar_billing.adapters.http.projects import project_routes
from busbar_billing.adapters.http.statements import statement_routes
from busbar_billing.adapters.http.tenants import tenant_routes
from busbar_billing.adapters.http.usage import usage_routes
from busbar_billing.adapters.http.webhooks import (
    delivery_routes,
    named_tenant,
    threshold_routes,
    webhook_routes,
)
from busbar_billing.adapters.postgres.adjustments import Adjustments
from busbar_billing.adapters.postgres.audit_walks import AuditWalks
from busbar_billing.adapters.postgres.balance_watches import BalanceWatches
from busbar_billing.adapters.postgres.budgets import Budgets
from busbar_billing.adapters.postgres.database import Database
from busbar_billing.adapters.postgres.duties import Duties
from busbar_billing.adapters.postgres.energy import EnergyPrices
from busbar_billing.adapters.postgres.invoicing import Invoicing
from busbar_billing.adapters.postgres.journal import Journal
from busbar_billing.adapters.postgres.keys import Keys
from busbar_billing.adapters.postgres.leakage import Leakage
from busbar_billing.adapters.postgres.payments import Payments
from busbar_billing.adapters.postgres.plans import Plans
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.adapters.postgres.projects import Projects
from busbar_billing.adapters.postgres.promotions import Credits
from busbar_billing.adapters.postgres.reading import Reader
from busbar_billing.adapters.postgres.rollups import Rollups
from busbar_billing.adapters.postgres.statements import Statements
from busbar_billing.adapters.postgres.tenants import Tenants
from busbar_billing.adapters.postgres.webhooks import Webhooks
from busbar_billing.domain.web_targets import TargetPolicy
from busbar_billing.usecases.keys import KeyDesk
from busbar_billing.usecases.webhooks import WebhookDesk


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes work with."""

    database: Database
    tenants: Tenants
    projects: Projects
    keys: Keys
    plans: Plans
    budgets: Budgets
    journal: Journal
    prices: Prices
    adjustments: Adjustments
    credits: Credits
    leakage: Leakage
    auditor: Auditor
    audit_walks: AuditWalks
    duties: Duties
    energy: EnergyPrices
    reader: Reader
    rollups: Rollups
    policies: PolicyDirectory
    recalls: Recalls
    directory: KeyDirectory
    statements: Statements
    invoicing: Invoicing
    backlog: UsageStream
    price_directory: PriceDirectoryBucket
    events: Events
    payments: Payments
    watches: BalanceWatches
    webhooks: Webhooks
    targets: TargetPolicy = field(default_factory=TargetPolicy)
    provider: PaymentProvider = field(default_factory=PaymentProvider)


def admin_application(parts: Parts, operator_token: str, hmac_secret: bytes) -> ASGIApp:
    """Every route of operators, behind their token; documented at /openapi.json."""
    desk = KeyDesk(parts.keys, parts.directory, parts.events, hmac_secret)
    app = _application(
        "Busbar billing",
        "Tenants, projects, API keys, plans, prices, usage and the ledger. Operators only.",
    )
    app.include_router(tenant_routes(parts.tenants, parts.journal, parts.policies, parts.events))
    app.include_router(project_routes(parts.projects, parts.tenants))
    app.include_router(key_routes(parts.keys, parts.tenants, parts.projects, desk))
    app.include_router(plan_routes(parts.plans, parts.policies, parts.recalls))
    app.include_router(
        terms_routes(parts.plans, parts.budgets, parts.policies, parts.recalls, parts.events)
    )
    app.include_router(usage_routes(parts.rollups, parts.tenants, parts.projects, parts.keys))
    app.include_router(ledger_routes(parts.reader, parts.prices, parts.tenants))
    app.include_router(statement_routes(parts.statements, parts.backlog, parts.tenants))
    app.include_router(invoicing_routes(parts.invoicing))
    app.include_router(price_routes(parts.prices, parts.tenants, parts.price_directory))
    app.include_router(energy_routes(parts.energy))
    app.include_router(leakage_routes(parts.leakage, parts.tenants))
    app.include_router(audit_routes(parts.auditor, parts.audit_walks))
    app.include_router(payment_routes(parts.payments, parts.tenants, parts.provider.checkout))
    app.include_router(credit_routes(parts.adjustments, parts.tenants, parts.credits))
    app.include_router(adjustment_routes(parts.adjustments))
    include_webhooks(
        app, parts, hmac_secret, "/admin/v1/tenants/{tenant_id}", named_tenant(parts.tenants)
    )
    return OperatorGate(app, OperatorToken(operator_token))


def account_application(parts: Parts, hmac_secret: bytes, notice_use: NoticesUse) -> ASGIApp:
    """Every route of customers, behind their own keys; documented at /openapi.json."""
    desk = KeyDesk(parts.keys, parts.directory, parts.events, hmac_secret)
    app = _application(
        "Busbar account",
        "A tenant's own usage, money, statements, projects and keys. Send an API key as a Bearer "
        "token: with scope read_usage or administer to read, with administer to change anything. "
        "Amounts are whole nanos (1e-9 of the currency).",
    )
    app.state.open_view = opens_views(parts.database, parts.journal, parts.prices)
    app.include_router(account.tenant_routes(parts.invoicing))
    app.include_router(account.usage_routes())
    app.include_router(account.money_routes())
    app.include_router(account.statement_routes())
    app.include_router(account_keys.project_routes(parts.projects))
    app.include_router(account_keys.key_routes(desk))
    app.include_router(account.checkout_routes(parts.tenants, parts.provider.checkout))
    include_webhooks(app, parts, hmac_secret, account.PREFIX, calling_tenant)
    gated = AccountGate(app, parts.keys, hmac_secret, notice_use)
    return WebhooksBeside(gated, webhook_application(parts))


def include_webhooks(
    app: FastAPI,
    parts: Parts,
    hmac_secret: bytes,
    prefix: str,
    tenant_of: Callable[..., object],
) -> None:
    """Routes by which a tenant is told of things; `tenant_of` says which one calls or is meant."""
    desk = WebhookDesk(parts.webhooks, parts.targets, hmac_secret)
    app.include_router(threshold_routes(parts.watches, prefix, tenant_of))
    app.include_router(webhook_routes(parts.webhooks, desk, prefix, tenant_of))
    app.include_router(delivery_routes(parts.webhooks, desk, prefix, tenant_of))


def webhook_application(parts: Parts) -> ASGIApp:
    """Where the payment provider tells of payments: what it signs needs no key."""
    app = _application("Busbar webhooks", "Events of the payment provider.", any_query=True)
    if parts.provider.read_event is not None:
        app.include_router(provider_routes(parts.payments, parts.provider.read_event))
    return BoundedBodies(app)


class WebhooksBeside:
    """ASGI: sends /webhooks/… past the gate of the customers' API."""

    def __init__(self, account: ASGIApp, webhooks: ASGIApp) -> None:
        self._account = account
        self._webhooks = webhooks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        is_webhook = scope["type"] == "http" and scope["path"].startswith("/webhooks/")
        await (self._webhooks if is_webhook else self._account)(scope, receive, send)


def _application(title: str, description: str, *, any_query: bool = False) -> FastAPI:
    app = FastAPI(
        title=title,
        version="1",
        description=description,
        docs_url=None,
        redoc_url=None,
        dependencies=None if any_query else [Depends(refuse_unknown_queries)],
        responses=errors.DOCUMENTED,
        # It would trace every call once a tracer is configured; what is not sampled has no span.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    errors.install(app)
    app.openapi = summarised(app.openapi)
    return app
