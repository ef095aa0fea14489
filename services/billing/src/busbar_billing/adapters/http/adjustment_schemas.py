"""JSON of what people do to a tenant's money."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, Field, StrictInt, StrictStr

from busbar_billing.adapters.http.schemas import CurrencyCode, TransferAnswer, Wanted
from busbar_billing.domain.money import TOP_UP_NANOS_MAX
from busbar_billing.domain.names import REFERENCE_MAX
from busbar_billing.domain.rating import CHARGE_NANOS_MAX
from busbar_billing.usecases.adjustments import REASON_MAX

Reference = Annotated[StrictStr, Field(min_length=1, max_length=REFERENCE_MAX)]
Reason = Annotated[StrictStr, Field(min_length=1, max_length=REASON_MAX)]


class WantedCredit(Wanted):
    """Money given to be spent until `expires_at`, before the tenant's own. `reference` names the
    gift; repeating it changes nothing."""

    amount_nanos: Annotated[StrictInt, Field(gt=0, le=TOP_UP_NANOS_MAX)]
    currency: CurrencyCode
    reference: Reference
    expires_at: AwareDatetime


class WantedWithdrawal(Wanted):
    """Why a credit should not have been given; shown on the tenant's statement."""

    reason: Reason


class CreditAnswer(BaseModel):
    """A promotional credit and what is left of it. `taken_back_nanos`: when it expired or was
    withdrawn; what is unspent of such a credit is in leases, and follows when it comes back."""

    credit_id: str
    tenant_id: str
    currency: str
    amount_nanos: int
    unspent_nanos: int
    reference: str
    given_at: datetime
    expires_at: datetime
    taken_back_nanos: int
    withdrawn_at: datetime | None
    withdrawn_for: str


class WantedRefund(Wanted):
    """Part of a charge to give back, or what is left of it. `reference` names the refund; repeating
    it changes nothing."""

    amount_nanos: Annotated[StrictInt, Field(gt=0, le=CHARGE_NANOS_MAX)] | None = None
    reference: Reference
    reason: Reason


class RefundAnswer(TransferAnswer):
    """The transfer of a refund. `ended_credit_nanos` of it was paid from promotional credit that
    had expired or was withdrawn before the refund: that goes again within seconds, and the tenant
    keeps it only when it is given as a new credit."""

    ended_credit_nanos: int


class WantedCorrection(Wanted):
    """Why a transfer is undone."""

    reason: Reason
