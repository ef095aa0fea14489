"""Routes of statements: close a month, read what was issued, correct it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import date, datetime
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field, StrictInt, StrictStr
from uuid_utils.compat import uuid7

from busbar_billing.adapters.documents.focus import render_focus
from busbar_billing.adapters.documents.html import render_html
from busbar_billing.adapters.documents.spreadsheet import render_csv
from busbar_billing.adapters.http import schemas
from busbar_billing.adapters.http.filters import TenantFilter, check_tenant
from busbar_billing.adapters.http.paging import (
    PAGE_DEFAULT,
    Cursor,
    Limit,
    decode_cursor,
    page,
)
from busbar_billing.adapters.postgres.statements import Statements
from busbar_billing.adapters.postgres.tenants import Tenants
from busbar_billing.domain.money import TOP_UP_NANOS_MAX
from busbar_billing.domain.names import REFERENCE_MAX, checked_reference, checked_text
from busbar_billing.domain.prices import Component
from busbar_billing.domain.statements import Section, checked_month
from busbar_billing.usecases.statements import Issued, UsageBacklog, close_month

_REASON_MAX = 300


class Form(StrEnum):
    """How a document is rendered."""

    HTML = "html"
    PDF = "pdf"
    CSV = "csv"
    FOCUS = "focus"


def _render_pdf(issued: Issued) -> bytes:
    """Loads the PDF library, 40 MiB with its fonts, when somebody asks for the first PDF."""
    from busbar_billing.adapters.documents.pdf import render_pdf  # noqa: PLC0415

    return render_pdf(issued)


_RENDERERS: dict[Form, tuple[Callable[[Issued], bytes], str, str]] = {
    Form.HTML: (render_html, "text/html; charset=utf-8", "html"),
    Form.PDF: (_render_pdf, "application/pdf", "pdf"),
    Form.CSV: (render_csv, "text/csv; charset=utf-8", "csv"),
    Form.FOCUS: (render_focus, "text/csv; charset=utf-8", "focus.csv"),
}
DOCUMENT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The document.",
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("text/html", "application/pdf", "text/csv")
        },
    }
}


Format = Annotated[Form, Query(alias="format")]


class WantedClose(schemas.Wanted):
    """The month to close, such as "2026-10"; it must be over."""

    month: Annotated[StrictStr, Field(pattern=r"^20[2-9][0-9]-(0[1-9]|1[0-2])$")]


class WantedCreditNote(schemas.Wanted):
    """Money to give back. `reference` makes a repeat harmless."""

    amount_nanos: Annotated[StrictInt, Field(gt=0, le=TOP_UP_NANOS_MAX)]
    reason: Annotated[StrictStr, Field(min_length=1, max_length=_REASON_MAX)]
    reference: Annotated[StrictStr, Field(min_length=1, max_length=REFERENCE_MAX)]


class IssuedAnswer(BaseModel):
    """A statement, or the credit note that corrects one: then `credited_nanos` is what it gives
    back, and the balances are those of the statement."""

    number: str
    tenant_id: str
    month: str
    issued_at: datetime
    currency: str
    opening_nanos: int
    closing_nanos: int
    charged_nanos: int
    tax_nanos: int
    requests: int
    corrects: str | None
    credited_nanos: int
    reason: str


class LineAnswer(BaseModel):
    """A line of a statement; `quantity` as usage records count it (µs, bytes, tokens, requests)."""

    section: Section
    text: str
    amount_nanos: int
    day: date | None
    model: str | None
    component: Component | None
    quantity: int | None
    price_nanos: int | None
    per_units: int | None


class StatementAnswer(IssuedAnswer):
    """A document with its lines, which sum to the change of the balance."""

    lines: list[LineAnswer]


def statement_routes(statements: Statements, backlog: UsageBacklog, tenants: Tenants) -> APIRouter:
    """GET /statements, /statements/{number} and its document; POST a close, a credit note."""
    router = APIRouter(prefix="/admin/v1", tags=["statements"])

    @router.post(
        "/tenants/{tenant_id}/statements",
        status_code=201,
        responses={200: {"model": StatementAnswer, "description": "Closed before."}},
    )
    async def close(tenant_id: str, wanted: WantedClose, response: Response) -> StatementAnswer:
        """Close a month of a tenant and issue its statement."""
        issued = await close_month(statements, backlog, tenant_id, checked_month(wanted.month))
        response.status_code = 200 if issued.repeated else 201
        return show_statement(issued)

    @router.get("/statements")
    async def list_all(
        tenant_id: TenantFilter = None,
        limit: Limit = PAGE_DEFAULT,
        cursor: Cursor = None,
    ) -> schemas.Page[IssuedAnswer]:
        """List statements."""
        await check_tenant(tenants, tenant_id)
        return await statements_page(statements, tenant_id, limit, cursor)

    @router.get("/statements/{number}")
    async def get(number: str) -> StatementAnswer:
        """Read one statement."""
        return show_statement(await statements.get(number))

    @router.get("/statements/{number}/document", response_class=Response, responses=DOCUMENT)
    async def document(number: str, form: Format) -> Response:
        """Download a statement as HTML, PDF, CSV or FOCUS."""
        return await answer_document(await statements.get(number), form)

    @router.post(
        "/statements/{number}/credit-notes",
        status_code=201,
        responses={200: {"model": IssuedAnswer, "description": "Issued before."}},
    )
    async def correct(number: str, wanted: WantedCreditNote, response: Response) -> IssuedAnswer:
        """Issue a credit note on a statement."""
        issued = await statements.credit(
            number,
            wanted.amount_nanos,
            checked_text("reason", wanted.reason, _REASON_MAX),
            checked_reference(wanted.reference),
            uuid7(),
        )
        response.status_code = 200 if issued.repeated else 201
        return show_issued(issued)

    return router


async def statements_page(
    statements: Statements, tenant_id: str | None, limit: int, cursor: str | None
) -> schemas.Page[IssuedAnswer]:
    """Statements and credit notes of a tenant, None: of all, the latest number first."""
    before = decode_cursor(cursor, "") or None
    rows = await statements.page(tenant_id, limit + 1, before)
    return page(rows, limit, lambda row: row.number, show_issued)


async def answer_document(issued: Issued, form: Form) -> Response:
    """A rendering, made beside the event loop."""
    render, media_type, suffix = _RENDERERS[form]
    content = await asyncio.to_thread(render, issued)
    headers = {
        "Content-Disposition": f'inline; filename="{issued.number}.{suffix}"',
        # A page that a customer's name could not make run anything.
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(content, media_type=media_type, headers=headers)


def show_issued(issued: Issued) -> IssuedAnswer:
    """A document without its lines."""
    return IssuedAnswer(**_shown(issued))


def show_statement(issued: Issued) -> StatementAnswer:
    """A document with its lines; a credit note has none."""
    lines = () if issued.corrects else issued.statement.lines
    return StatementAnswer(
        **_shown(issued),
        lines=[LineAnswer.model_validate(line, from_attributes=True) for line in lines],
    )


def _shown(issued: Issued) -> dict[str, Any]:
    made = issued.statement
    return {
        "number": issued.number,
        "tenant_id": issued.customer.party_id,
        "month": str(made.month),
        "issued_at": issued.issued_at,
        "currency": made.currency,
        "opening_nanos": made.opening_nanos,
        "closing_nanos": made.closing_nanos,
        "charged_nanos": made.taxable_nanos,
        "tax_nanos": made.tax_nanos,
        "requests": made.requests,
        "corrects": issued.corrects,
        "credited_nanos": issued.credited_nanos,
        "reason": issued.reason,
    }
