"""JSON of the customers' API: what is the tenant's own, without the operator's side of it."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel

from busbar_billing.adapters.http.schemas import PostingAnswer, RatingLine
from busbar_billing.adapters.http.showing import moment, show_posting
from busbar_billing.adapters.postgres.own_ledger import OwnTransfer
from busbar_billing.adapters.postgres.reading import PostedUsage
from busbar_billing.domain.ledger import TransferKind
from busbar_billing.domain.usage import Outcome


class AccountUsageAnswer(BaseModel):
    """A billed request. A voided one was charged and the charge taken back."""

    request_id: str
    key_id: str
    deployment: str
    api: str
    outcome: Outcome
    admitted_at: datetime
    finished_at: datetime
    input_tokens: int
    output_tokens: int
    request_bytes: int
    response_bytes: int
    price_class: str
    amount_nanos: int
    currency: str
    transfer_id: str
    voided: bool


class ExplainedAccountUsageAnswer(AccountUsageAnswer):
    """A billed request with the lines whose exact sum, rounded half-even, is its amount."""

    lines: list[RatingLine]


class PaymentAnswer(BaseModel):
    """A payment, or what took one back: then the amount is negative."""

    transfer_id: str
    kind: TransferKind
    reference: str
    amount_nanos: int
    currency: str
    posted_at: datetime


class AccountTransferAnswer(BaseModel):
    """What a transfer added to the tenant's own accounts; negative was taken from them."""

    transfer_id: str
    kind: TransferKind
    request_id: str | None
    reason: str
    posted_at: datetime
    postings: list[PostingAnswer]


def show_own_usage(posted: PostedUsage) -> AccountUsageAnswer:
    """A billed request."""
    record = posted.record
    return AccountUsageAnswer(
        request_id=f"req_{record.request_id.hex}",
        key_id=record.key_id,
        deployment=record.deployment,
        api=record.api,
        outcome=record.outcome,
        admitted_at=moment(record.admitted_unix_ns),
        finished_at=moment(record.finished_unix_ns),
        input_tokens=record.input_tokens,
        output_tokens=record.output_tokens,
        request_bytes=record.request_bytes,
        response_bytes=record.response_bytes,
        price_class=posted.rated_class,
        amount_nanos=posted.amount_nanos,
        currency=posted.currency,
        transfer_id=str(posted.transfer_id),
        voided=posted.voided,
    )


def show_own_transfer(transfer: OwnTransfer) -> AccountTransferAnswer:
    """A transfer, as far as it touches accounts of the tenant."""
    request_id = transfer.request_id
    return AccountTransferAnswer(
        transfer_id=str(transfer.transfer_id),
        kind=transfer.kind,
        request_id=f"req_{request_id.hex}" if request_id else None,
        reason=transfer.reason,
        posted_at=transfer.posted_at,
        postings=[show_posting(posting) for posting in transfer.postings],
    )


def show_payment(transfer: OwnTransfer) -> PaymentAnswer:
    """A payment."""
    return PaymentAnswer(
        transfer_id=str(transfer.transfer_id),
        kind=transfer.kind,
        reference=transfer.reason,
        amount_nanos=transfer.amount_nanos,
        currency=transfer.postings[0].account.currency,
        posted_at=transfer.posted_at,
    )
