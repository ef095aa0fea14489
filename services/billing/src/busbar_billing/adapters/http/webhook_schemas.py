"""JSON of webhook endpoints, of what was sent to them, and of the balance's threshold."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, Field, StrictBool, StrictInt, StrictStr

from busbar_billing.adapters.http.schemas import Wanted
from busbar_billing.adapters.postgres.balance_watches import Threshold
from busbar_billing.domain.balance_alerts import Level
from busbar_billing.domain.money import TOP_UP_NANOS_MAX
from busbar_billing.domain.web_targets import URL_CHARACTERS_MAX
from busbar_billing.domain.webhooks import DESCRIPTION_MAX, Endpoint, EventType
from busbar_billing.usecases.webhooks import Delivery, WantedEndpoint


class WantedWebhook(Wanted):
    """An endpoint to add. No event types: it is told of everything, of what comes later too."""

    url: Annotated[StrictStr, Field(min_length=1, max_length=URL_CHARACTERS_MAX)]
    description: Annotated[StrictStr, Field(max_length=DESCRIPTION_MAX)] = ""
    event_types: list[EventType] = Field(default=[], max_length=len(EventType))

    def wanted(self) -> WantedEndpoint:
        """As the use case has it."""
        return WantedEndpoint(self.url, self.description, self.event_types)


class ChangedWebhook(WantedWebhook):
    """An endpoint as it shall be from now on. Enabling one that was disabled begins anew: what was
    told meanwhile is not sent."""

    enabled: StrictBool = True


class WantedSecret(Wanted):
    """A new secret. Until `old_valid_until`, at most 7 days from now, messages are signed with the
    old one too; when it is left out they are signed with the new one only. One overlap at a time:
    409 while an earlier one lasts."""

    old_valid_until: AwareDatetime | None = None


class WebhookAnswer(BaseModel):
    """An endpoint. `failing_since`: of the first failure after the last success."""

    endpoint_id: str
    url: str
    description: str
    event_types: list[EventType]
    enabled: bool
    disabled_reason: str
    failing_since: datetime | None
    created_at: datetime


class NewWebhookAnswer(WebhookAnswer):
    """An endpoint with its new secret, which is shown this once."""

    secret: str


class DeliveryAnswer(BaseModel):
    """A message on its way to an endpoint, or what became of it; `message_id` is its webhook-id."""

    delivery_id: str
    message_id: str
    endpoint_id: str
    type: str
    state: Literal["pending", "delivered", "failed"]
    attempts: int
    created_at: datetime
    next_attempt_at: datetime | None
    last_attempt_at: datetime | None
    last_status: int | None
    last_error: str


class WantedThreshold(Wanted):
    """Below what `balance.low` is told, in nanos of the tenant's currency; 0: never, null: as the
    operator's default says."""

    low_balance_nanos: Annotated[StrictInt, Field(ge=0, le=TOP_UP_NANOS_MAX)] | None


class ThresholdAnswer(BaseModel):
    """The threshold that holds, and where the balance was last seen."""

    tenant_id: str
    currency: str
    low_balance_nanos: int
    is_default: bool
    level: Level


def show_webhook(endpoint: Endpoint) -> WebhookAnswer:
    """An endpoint."""
    return WebhookAnswer(
        endpoint_id=endpoint.endpoint_id,
        url=endpoint.url,
        description=endpoint.description,
        event_types=list(endpoint.event_types),
        enabled=endpoint.disabled_at is None,
        disabled_reason=endpoint.disabled_reason,
        failing_since=endpoint.failing_since,
        created_at=endpoint.created_at,
    )


def show_delivery(delivery: Delivery) -> DeliveryAnswer:
    """A delivery."""
    return DeliveryAnswer.model_validate(delivery, from_attributes=True)


def show_threshold(threshold: Threshold) -> ThresholdAnswer:
    """A threshold."""
    return ThresholdAnswer(
        tenant_id=threshold.tenant_id,
        currency=threshold.currency,
        low_balance_nanos=threshold.low_nanos,
        is_default=threshold.is_default,
        level=threshold.level,
    )
