"""Routes of promotional credit, refunds and corrections."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any
from uuid import UUID

from busbar_errors import NotFound
from fastapi import APIRouter, Response
from uuid_utils.compat import uuid7

from busbar_billing.adapters.http import adjustment_schemas, schemas
from busbar_billing.adapters.http.paging import (
    PAGE_DEFAULT,
    Cursor,
    Limit,
    decode_id_cursor,
    page,
    read_request_id,
)
from busbar_billing.adapters.http.prices import unix_ns
from busbar_billing.adapters.http.showing import show_transfer
from busbar_billing.adapters.postgres.adjustments import Adjustments
from busbar_billing.adapters.postgres.promotions import Credits, GivenCredit
from busbar_billing.adapters.postgres.reading import LAST_ID
from busbar_billing.adapters.postgres.tenants import Tenants
from busbar_billing.usecases.adjustments import (
    WantedCredit,
    correct_transfer,
    grant_credit,
    refund_charge,
    withdraw_credit,
)
from busbar_billing.usecases.tenants import PostedTransfer


def credit_routes(adjustments: Adjustments, tenants: Tenants, given: Credits) -> APIRouter:
    """POST, GET /tenants/{id}/credits; POST withdrawals."""
    router = APIRouter(prefix="/admin/v1", tags=["adjustments"])

    @router.post("/tenants/{tenant_id}/credits", status_code=201, responses=_REPEATED)
    async def give(
        tenant_id: str, wanted: adjustment_schemas.WantedCredit, response: Response
    ) -> schemas.TransferAnswer:
        """Give a tenant promotional credit."""
        now_ns = time.time_ns()
        credit = WantedCredit(
            tenant_id=tenant_id,
            amount_nanos=wanted.amount_nanos,
            currency=wanted.currency,
            reference=wanted.reference,
            expires_unix_ns=unix_ns(wanted.expires_at, now_ns),
        )
        posted = await grant_credit(adjustments, tenants, credit, uuid7(), now_ns)
        return _show(posted, response)

    @router.get("/tenants/{tenant_id}/credits")
    async def list_of_tenant(
        tenant_id: str, limit: Limit = PAGE_DEFAULT, cursor: Cursor = None
    ) -> schemas.Page[adjustment_schemas.CreditAnswer]:
        """List a tenant's promotional credit."""
        await tenants.get(tenant_id)
        rows = await given.of_tenant(tenant_id, decode_id_cursor(cursor, LAST_ID), limit + 1)
        return page(rows, limit, lambda row: str(row.credit_id), show_credit)

    @router.post("/credits/{credit_id}/withdrawals", status_code=201, responses=_WITHDRAWN)
    async def withdraw(
        credit_id: str, wanted: adjustment_schemas.WantedWithdrawal, response: Response
    ) -> adjustment_schemas.CreditAnswer:
        """Take back what is unspent of a credit that was given by mistake."""
        named = _read_id(credit_id, "promotional credit")
        repeated = await withdraw_credit(
            adjustments, credit_id=named, reason=wanted.reason, transfer_id=uuid7()
        )
        response.status_code = 200 if repeated else 201
        return show_credit(await given.get(named))

    return router


def adjustment_routes(adjustments: Adjustments) -> APIRouter:
    """POST refunds of a request and corrections of a transfer."""
    router = APIRouter(prefix="/admin/v1", tags=["adjustments"])

    @router.post("/usage/{request_id}/refunds", status_code=201, responses=_REFUNDED)
    async def refund(
        request_id: str, wanted: adjustment_schemas.WantedRefund, response: Response
    ) -> adjustment_schemas.RefundAnswer:
        """Refund a charge, whole or in part."""
        refunded = await refund_charge(
            adjustments,
            request_id=read_request_id(request_id),
            amount_nanos=wanted.amount_nanos,
            reference=wanted.reference,
            reason=wanted.reason,
            transfer_id=uuid7(),
        )
        shown = _show(refunded.posted, response).model_dump()
        return adjustment_schemas.RefundAnswer(
            **shown, ended_credit_nanos=refunded.ended_credit_nanos
        )

    @router.post("/transfers/{transfer_id}/corrections", status_code=201, responses=_REPEATED)
    async def correct(
        transfer_id: str, wanted: adjustment_schemas.WantedCorrection, response: Response
    ) -> schemas.TransferAnswer:
        """Reverse a transfer with a new one."""
        posted = await correct_transfer(
            adjustments,
            wrong_id=_read_id(transfer_id, "transfer"),
            reason=wanted.reason,
            new_id=uuid7(),
        )
        return _show(posted, response)

    return router


_WITHDRAWN: dict[int | str, dict[str, Any]] = {
    200: {"model": adjustment_schemas.CreditAnswer, "description": "Withdrawn before."}
}
_REFUNDED: dict[int | str, dict[str, Any]] = {
    200: {"model": adjustment_schemas.RefundAnswer, "description": "Posted before."}
}
_REPEATED: dict[int | str, dict[str, Any]] = {
    200: {"model": schemas.TransferAnswer, "description": "Posted before."}
}


def _show(posted: PostedTransfer, response: Response) -> schemas.TransferAnswer:
    response.status_code = 200 if posted.repeated else 201
    return show_transfer(posted)


def _read_id(text: str, what: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise NotFound(f"there is no {what} {text[:80]!r}") from error


def show_credit(given: GivenCredit) -> adjustment_schemas.CreditAnswer:
    """A promotional credit and what is left of it."""
    told = {one.name: getattr(given, one.name) for one in fields(given)}
    told["credit_id"] = str(given.credit_id)
    return adjustment_schemas.CreditAnswer.model_validate(told)
