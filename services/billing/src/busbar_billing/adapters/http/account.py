"""The customers' API: a tenant's usage, money and statements, and nothing of anybody else's.

The tenant is always that of the key that was presented, never one that a path or a body names; what
belongs to another tenant does not exist.
"""

from __future__ import annotations

from typing import Annotated

from busbar_errors import NotFound, Rejected
from fastapi import APIRouter, Query, Response
from pydantic import AwareDatetime

from busbar_billing.adapters.http import schemas, tenancy_schemas
from busbar_billing.adapters.http.account_schemas import (
    AccountTransferAnswer,
    AccountUsageAnswer,
    ExplainedAccountUsageAnswer,
    PaymentAnswer,
    show_own_transfer,
    show_own_usage,
    show_payment,
)
from busbar_billing.adapters.http.account_view import CallingTenant, Own
from busbar_billing.adapters.http.invoicing import DetailsAnswer, WantedDetails, show_details
from busbar_billing.adapters.http.ledger import RequestFilter, rating_lines
from busbar_billing.adapters.http.paging import (
    PAGE_DEFAULT,
    Cursor,
    Limit,
    decode_id_cursor,
    first_id_of,
    page,
    read_request_id,
)
from busbar_billing.adapters.http.payments import (
    Checkout,
    CheckoutAnswer,
    WantedCheckout,
    start_checkout,
)
from busbar_billing.adapters.http.plans import terms_answer
from busbar_billing.adapters.http.showing import show_balance, show_tenant
from busbar_billing.adapters.http.statements import (
    DOCUMENT,
    Format,
    IssuedAnswer,
    StatementAnswer,
    answer_document,
    show_statement,
    statements_page,
)
from busbar_billing.adapters.http.usage import UsageBucketAnswer, WantedBuckets, buckets_page
from busbar_billing.adapters.postgres.invoicing import Invoicing
from busbar_billing.adapters.postgres.reading import FIRST_ID, LAST_ID
from busbar_billing.adapters.postgres.tenants import Tenants

PREFIX = "/account/v1"


def tenant_routes(invoicing: Invoicing) -> APIRouter:
    """GET /tenant, /balance and /terms; GET, PUT /billing-details."""
    router = APIRouter(prefix=PREFIX, tags=["tenant"])

    @router.get("/tenant")
    async def get(tenant_id: CallingTenant, own: Own) -> schemas.TenantAnswer:
        """Read your own account."""
        return show_tenant(await own.tenants.get(tenant_id))

    @router.get("/balance")
    async def balance(tenant_id: CallingTenant, own: Own) -> schemas.BalanceAnswer:
        """Read your balance."""
        return show_balance(await own.tenants.balance(tenant_id))

    @router.get("/terms")
    async def terms(tenant_id: CallingTenant, own: Own) -> tenancy_schemas.TermsAnswer:
        """The limits that hold for the tenant, and what it spent of this month's budget."""
        return await terms_answer(own.plans, own.budgets, tenant_id)

    @router.get("/billing-details")
    async def details(tenant_id: CallingTenant, own: Own) -> DetailsAnswer:
        """Read to whom your statements go."""
        return show_details(await own.invoicing.details(tenant_id))

    @router.put("/billing-details")
    async def put_details(tenant_id: CallingTenant, wanted: WantedDetails) -> DetailsAnswer:
        """Say to whom your statements go."""
        kept = await invoicing.put_details(wanted.details(tenant_id), change_entity=False)
        return show_details(kept)

    return router


def usage_routes() -> APIRouter:
    """GET /usage newest first, /usage/buckets oldest first, /usage/{request_id} line by line."""
    router = APIRouter(prefix=PREFIX, tags=["usage"])

    @router.get("/usage")
    async def usage(
        *,
        tenant_id: CallingTenant,
        own: Own,
        since: AwareDatetime | None = None,
        until: AwareDatetime | None = None,
        limit: Limit = PAGE_DEFAULT,
        cursor: Cursor = None,
    ) -> schemas.Page[AccountUsageAnswer]:
        """List your billed requests, newest first."""
        first = FIRST_ID if since is None else first_id_of(since)
        last = LAST_ID if until is None else first_id_of(until)
        before = min(last, decode_id_cursor(cursor, last))
        rows = await own.reader.usage(tenant_id, first, before, limit + 1)
        return page(rows, limit, lambda row: str(row.record.request_id), show_own_usage)

    @router.get("/usage/buckets")
    async def buckets(
        tenant_id: CallingTenant, own: Own, wanted: Annotated[WantedBuckets, Query()]
    ) -> schemas.Page[UsageBucketAnswer]:
        """Add your usage up by minute, hour or day."""
        return await buckets_page(own.rollups, own.tenants, tenant_id, wanted)

    @router.get("/usage/{request_id}")
    async def usage_of(own: Own, request_id: str) -> ExplainedAccountUsageAnswer:
        """Explain one charge line by line."""
        try:
            posted = await own.reader.usage_of(read_request_id(request_id))
        except Rejected as error:
            raise NotFound(f"no usage is posted for request {request_id[:80]!r}") from error
        shown = show_own_usage(posted).model_dump()
        lines = rating_lines(posted, await own.prices.all())
        return ExplainedAccountUsageAnswer(**shown, lines=lines)

    return router


def money_routes() -> APIRouter:
    """GET /ledger and /payments, newest first."""
    router = APIRouter(prefix=PREFIX, tags=["ledger"])

    @router.get("/ledger")
    async def ledger(
        tenant_id: CallingTenant,
        own: Own,
        request_id: RequestFilter = None,
        limit: Limit = PAGE_DEFAULT,
        cursor: Cursor = None,
    ) -> schemas.Page[AccountTransferAnswer]:
        """List your ledger transfers, newest first."""
        request = None if request_id is None else read_request_id(request_id)
        before = decode_id_cursor(cursor, LAST_ID)
        rows = await own.ledger.transfers(tenant_id, request, before, limit + 1)
        return page(rows, limit, lambda row: str(row.transfer_id), show_own_transfer)

    @router.get("/payments")
    async def payments(
        tenant_id: CallingTenant, own: Own, limit: Limit = PAGE_DEFAULT, cursor: Cursor = None
    ) -> schemas.Page[PaymentAnswer]:
        """Money paid in, paid back, and what was entered wrongly and taken back."""
        before = decode_id_cursor(cursor, LAST_ID)
        rows = await own.ledger.payments(tenant_id, before, limit + 1)
        return page(rows, limit, lambda row: str(row.transfer_id), show_payment)

    return router


def statement_routes() -> APIRouter:
    """GET /statements, /statements/{number} and its document."""
    router = APIRouter(prefix=PREFIX, tags=["statements"])

    @router.get("/statements")
    async def list_all(
        tenant_id: CallingTenant, own: Own, limit: Limit = PAGE_DEFAULT, cursor: Cursor = None
    ) -> schemas.Page[IssuedAnswer]:
        """List your statements."""
        return await statements_page(own.statements, tenant_id, limit, cursor)

    @router.get("/statements/{number}")
    async def get(own: Own, number: str) -> StatementAnswer:
        """Read one statement."""
        return show_statement(await own.statements.get(number))

    @router.get("/statements/{number}/document", response_class=Response, responses=DOCUMENT)
    async def document(own: Own, number: str, form: Format) -> Response:
        """Download a statement as HTML, PDF, CSV or FOCUS."""
        return await answer_document(await own.statements.get(number), form)

    return router


def checkout_routes(tenants: Tenants, checkout: Checkout | None) -> APIRouter:
    """POST /checkouts: a page where the tenant pays."""
    router = APIRouter(prefix=PREFIX, tags=["payments"])

    @router.post("/checkouts", status_code=201)
    async def start(tenant_id: CallingTenant, wanted: WantedCheckout) -> CheckoutAnswer:
        """Begin to pay money in."""
        return await start_checkout(checkout, tenants, tenant_id, wanted)

    return router
