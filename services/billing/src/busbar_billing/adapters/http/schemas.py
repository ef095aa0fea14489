"""The admin API's JSON. Amounts are whole nanos (1e-9 of the currency); times are RFC 3339, UTC."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StrictInt, StrictStr

from busbar_billing.domain.keys import Scope
from busbar_billing.domain.ledger import AccountKind, TransferKind
from busbar_billing.domain.money import TOP_UP_NANOS_MAX
from busbar_billing.domain.names import DEPLOYMENTS_MAX, NAME_MAX, REFERENCE_MAX
from busbar_billing.domain.prices import (
    CLASSES_MAX,
    PRICE_NANOS_MAX,
    QUANTUM_NANOS_MAX,
    TIERS_MAX,
    UNITS_MAX,
    Component,
)
from busbar_billing.domain.usage import Outcome

T = TypeVar("T")

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
CurrencyCode = Annotated[StrictStr, Field(pattern=r"^[A-Z]{3}$", examples=["USD"])]
Slug = Annotated[StrictStr, Field(pattern=NAME)]


class Wanted(BaseModel):
    """A request body: unknown fields are refused, as they may have meant something."""

    model_config = ConfigDict(extra="forbid")


class Page(BaseModel, Generic[T]):
    """A page of a list. `next_cursor` asks for the next one; null on the last."""

    items: list[T]
    next_cursor: str | None


class ErrorDetail(BaseModel):
    """What went wrong and what to do next."""

    message: str
    type: str
    code: str


class ErrorAnswer(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class WantedTenant(Wanted):
    """A tenant to create; without `tenant_id` one is made up."""

    name: Annotated[StrictStr, Field(min_length=1, max_length=NAME_MAX)]
    tenant_id: Slug | None = None
    currency: CurrencyCode = "USD"


class TenantAnswer(BaseModel):
    """A tenant."""

    tenant_id: str
    name: str
    currency: str
    created_at: datetime


ProjectId = Annotated[StrictStr, Field(max_length=80, examples=["prj_" + "0" * 32])]


class WantedKey(Wanted):
    """A key to create. No deployments: every one open to the tenant. No project: its default."""

    name: Annotated[StrictStr, Field(min_length=1, max_length=NAME_MAX)]
    deployments: Annotated[list[Slug], Field(max_length=DEPLOYMENTS_MAX)] = []
    expires_at: AwareDatetime | None = None
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=len(Scope))] = [Scope.SERVE]
    project_id: ProjectId | None = None


class WantedRotation(Wanted):
    """A new secret for a key. The old one is accepted until `old_valid_until`, at most 7 days from
    now; when that is left out every old secret ends now. One overlap at a time: 409
    while an earlier one lasts."""

    old_valid_until: AwareDatetime | None = None


class PreviousSecretAnswer(BaseModel):
    """The secret before the last rotation, and until when it is accepted."""

    prefix: str
    valid_until: datetime


class KeyAnswer(BaseModel):
    """A key, without the key itself."""

    key_id: str
    tenant_id: str
    project_id: str | None
    name: str
    prefix: str
    scopes: list[Scope]
    deployments: list[str]
    expires_at: datetime | None
    created_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None
    previous_secret: PreviousSecretAnswer | None


class ChangedKeyAnswer(KeyAnswer):
    """A key after a change. `propagated` false: gateways learn of it when the bus is back."""

    propagated: bool


class NewKeyAnswer(ChangedKeyAnswer):
    """A new or rotated key; `key` is shown this once and stored nowhere."""

    key: str


class WantedTopUp(Wanted):
    """Money paid in. `reference` names the payment; repeating it changes nothing."""

    amount_nanos: Annotated[StrictInt, Field(gt=0, le=TOP_UP_NANOS_MAX)]
    currency: CurrencyCode
    reference: Annotated[StrictStr, Field(min_length=1, max_length=REFERENCE_MAX)]


class PostingAnswer(BaseModel):
    """`amount_nanos` was added to the account; negative was taken from it."""

    account: AccountKind
    tenant_id: str | None
    amount_nanos: int
    currency: str


class TransferAnswer(BaseModel):
    """A transfer of the journal; its postings sum to zero."""

    transfer_id: str
    kind: TransferKind
    tenant_id: str | None
    request_id: str | None
    reason: str
    posted_at: datetime
    postings: list[PostingAnswer]


class BalanceAnswer(BaseModel):
    """What a tenant has left: balance = available + held - owed.

    Held is what gateways may spend without asking, available what they may still
    ask for, owed what was delivered without being covered.
    """

    tenant_id: str
    currency: str
    balance_nanos: int
    available_nanos: int
    held_nanos: int
    owed_nanos: int


class RatingLine(BaseModel):
    """quantity (tokens, requests, µs, bytes) x amount_nanos / per_units of the component's unit.

    `used_before` is how much of it the tenant had used in that month, for prices with tiers or an
    allowance; null where prices are flat.
    """

    component: Component
    used_before: int | None
    quantity: int
    amount_nanos: int
    per_units: int
    exact_nanos: str


class UsageAnswer(BaseModel):
    """A billed request. A voided one was charged and the charge taken back."""

    request_id: str
    tenant_id: str
    key_id: str
    deployment: str
    price_class: str
    rated_class: str
    api: str
    outcome: Outcome
    admitted_at: datetime
    finished_at: datetime
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    request_bytes: int
    response_bytes: int
    compute_us: int
    node: str
    attempt: int
    gateway_id: str
    trace_id: str
    price_version: int
    amount_nanos: int
    currency: str
    transfer_id: str
    posted_at: datetime
    voided: bool
    void_reason: str | None


class ExplainedUsageAnswer(UsageAnswer):
    """A billed request with the lines whose exact sum is its amount, once that is rounded half-even
    to the `charge_quantum_nanos` of its price book."""

    lines: list[RatingLine]


class TierEntry(Wanted):
    """What units cost once the month's quantity is above `above_units`. Without `per_units` the
    amount buys as many as the component's."""

    above_units: Annotated[StrictInt, Field(ge=1, le=UNITS_MAX)]
    amount_nanos: Annotated[StrictInt, Field(ge=0, le=PRICE_NANOS_MAX)]
    per_units: Literal[1, 1_000, 1_000_000] | None = None


class PriceEntry(Wanted):
    """`amount_nanos` buys `per_units` units: tokens, requests, seconds or megabytes.

    The first `free_units` of a calendar month (UTC) cost nothing; `tiers` are graduated by the
    tenant's quantity of the month in that class, free units included.
    """

    amount_nanos: Annotated[StrictInt, Field(ge=0, le=PRICE_NANOS_MAX)]
    per_units: Literal[1, 1_000, 1_000_000] = 1
    free_units: Annotated[StrictInt, Field(ge=0, le=UNITS_MAX)] = 0
    tiers: Annotated[list[TierEntry], Field(max_length=TIERS_MAX)] = []


ClassTable = dict[Slug, dict[Component, PriceEntry]]


class WantedPrices(Wanted):
    """A whole price book, which replaces the one before from `effective_from` (default, and the
    earliest: ten seconds from now, when every gateway knows it).

    With `tenant_id` it holds for that tenant alone, instead of everybody's, until
    `effective_until` or until the tenant's next one, whichever is first; then everybody's do.
    """

    currency: CurrencyCode = "USD"
    tenant_id: Slug | None = None
    effective_from: AwareDatetime | None = None
    effective_until: AwareDatetime | None = None
    charge_quantum_nanos: Annotated[StrictInt, Field(ge=1, le=QUANTUM_NANOS_MAX)] = 1
    note: Annotated[StrictStr, Field(max_length=500)] = ""
    classes: Annotated[ClassTable, Field(max_length=CLASSES_MAX)]


class WantedEnd(Wanted):
    """From when everybody's prices are to hold for a tenant again (default, and the
    earliest: ten seconds from now)."""

    tenant_id: Slug
    effective_until: AwareDatetime | None = None
    note: Annotated[StrictStr, Field(max_length=500)] = ""


class PricesAnswer(BaseModel):
    """One version of the price book; `tenant_id` null: for everybody without their own."""

    version: int
    currency: str
    tenant_id: str | None
    effective_from: datetime
    effective_until: datetime | None
    charge_quantum_nanos: int
    note: str
    in_force: bool
    classes: dict[str, dict[Component, PriceEntry]]


class PricesNamed(BaseModel):
    """A version of the price book beside another; `effective_until`: the end that it was given."""

    version: int
    tenant_id: str | None
    effective_until: datetime | None


class PublishedPricesAnswer(PricesAnswer):
    """A version as it was published. `left_to_default`: classes that have prices of their own until
    then and none in this version, which charges them by its class `default`.

    `ends`: the version of the same tenant, or of everybody, that would have held on and does not
    hold again. `followed_by`: what holds when this one has ended, null while it has no end.
    """

    left_to_default: list[str]
    ends: PricesNamed | None
    followed_by: PricesNamed | None
