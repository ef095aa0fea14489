"""Manage the endpoints at which a tenant wants to be told of facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from busbar_billing.domain.web_targets import TargetPolicy, read_target
from busbar_billing.domain.webhooks import (
    Endpoint,
    EventType,
    Notice,
    checked_description,
    checked_event_types,
    checked_overlap,
    secret_text,
    signing_secret,
)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message on its way to an endpoint, or what became of it."""

    delivery_id: str
    message_id: str
    endpoint_id: str
    type: str
    state: str
    """pending, delivered or failed."""
    attempts: int
    created_at: datetime
    next_attempt_at: datetime | None
    last_attempt_at: datetime | None
    last_status: int | None
    last_error: str


@dataclass(frozen=True, slots=True)
class WantedEndpoint:
    """What a tenant asks for."""

    url: str
    description: str
    event_types: Sequence[EventType]


class WebhookStore(Protocol):
    """Where endpoints and deliveries are kept; those of other tenants are not there."""

    async def add(self, endpoint: Endpoint) -> Endpoint:
        """Add one; raise NotFound for an unknown tenant and Rejected when it has too many."""
        ...

    async def get(self, tenant_id: str, endpoint_id: str) -> Endpoint:
        """Raise NotFound when there is none."""
        ...

    async def change(self, endpoint: Endpoint) -> Endpoint:
        """Keep an endpoint as it is now, but for its secret; raise NotFound when there is none."""
        ...

    async def rotate(
        self, tenant_id: str, endpoint_id: str, salt: bytes, old_until: datetime | None
    ) -> Endpoint:
        """Give an endpoint another secret; raise NotFound when there is none, Conflict when an
        earlier overlap would be cut short."""
        ...

    async def ask_for(self, endpoint: Endpoint, notice: Notice) -> Delivery:
        """Queue a message for one endpoint; raise Conflict when it gets none or too many wait."""
        ...


@dataclass(frozen=True, slots=True)
class WebhookDesk:
    """What endpoints are managed with."""

    store: WebhookStore
    policy: TargetPolicy
    service_secret: bytes

    def secret_of(self, endpoint: Endpoint) -> str:
        """The signing secret of an endpoint, as it is shown once."""
        return secret_text(signing_secret(self.service_secret, endpoint.salt))


async def create_endpoint(
    desk: WebhookDesk,
    tenant_id: str,
    wanted: WantedEndpoint,
    *,
    endpoint_id: str,
    salt: bytes,
    now: datetime,
) -> Endpoint:
    """Add an endpoint; raise Rejected for an address to which nothing is sent."""
    read_target(wanted.url, desk.policy)
    return await desk.store.add(
        Endpoint(
            endpoint_id=endpoint_id,
            tenant_id=tenant_id,
            url=wanted.url,
            description=checked_description(wanted.description),
            event_types=checked_event_types(wanted.event_types),
            salt=salt,
            created_at=now,
        )
    )


async def change_endpoint(
    desk: WebhookDesk,
    tenant_id: str,
    endpoint_id: str,
    wanted: WantedEndpoint,
    *,
    enabled: bool,
    now: datetime,
) -> Endpoint:
    """Change an endpoint, or disable it, or enable it again; its secret stays."""
    endpoint = await desk.store.get(tenant_id, endpoint_id)
    read_target(wanted.url, desk.policy)
    changed = replace(
        endpoint,
        url=wanted.url,
        description=checked_description(wanted.description),
        event_types=checked_event_types(wanted.event_types),
    )
    if enabled and endpoint.disabled_at is not None:
        changed = replace(changed, disabled_at=None, disabled_reason="")
    if not enabled and endpoint.disabled_at is None:
        changed = replace(changed, disabled_at=now, disabled_reason="disabled by hand")
    return await desk.store.change(changed)


async def rotate_secret(
    desk: WebhookDesk,
    tenant_id: str,
    endpoint_id: str,
    *,
    salt: bytes,
    old_until: datetime | None,
    now: datetime,
) -> Endpoint:
    """Give an endpoint a new secret; until `old_until` messages are signed with both. While they
    are signed with one from before, only a rotation that ends both at once is carried out."""
    until = checked_overlap(old_until, now)
    return await desk.store.rotate(tenant_id, endpoint_id, salt, until)


async def ping(desk: WebhookDesk, tenant_id: str, endpoint_id: str) -> Delivery:
    """Send a message that says nothing, whatever the endpoint wants to be told."""
    endpoint = await desk.store.get(tenant_id, endpoint_id)
    return await desk.store.ask_for(
        endpoint, Notice(tenant_id, EventType.PING, {"tenant_id": tenant_id})
    )
