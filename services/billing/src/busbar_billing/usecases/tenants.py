"""Create a tenant; take its money."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from busbar_errors import Conflict, Rejected

from busbar_billing.domain import ledger
from busbar_billing.domain.ledger import Transfer
from busbar_billing.domain.money import checked_currency, checked_top_up
from busbar_billing.domain.names import checked_name, checked_reference, checked_tenant_id


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who pays."""

    tenant_id: str
    name: str
    currency: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class PostedTransfer:
    """A transfer as the journal holds it; `repeated` when it was there before."""

    transfer: Transfer
    posted_at: datetime
    repeated: bool
    undone_at: datetime | None = None
    """When it was corrected or withdrawn; looked for in repeats only."""

    def refuse_undone(self) -> None:
        """Raise Conflict where what is wanted again was undone: a repeat would give nothing."""
        if self.undone_at is not None:
            raise Conflict(
                f"the reference names transfer {self.transfer.transfer_id}, which was undone at "
                f"{self.undone_at:%Y-%m-%d %H:%M:%S} UTC, so this would move nothing: "
                "use a new reference"
            )


class Tenants(Protocol):
    """Where tenants are kept."""

    async def add(self, tenant_id: str, name: str, currency: str) -> Tenant:
        """Add one with its accounts; raise Conflict when the id is taken."""
        ...

    async def get(self, tenant_id: str) -> Tenant:
        """Raise NotFound when there is none."""
        ...

    async def currencies(self) -> frozenset[str]:
        """Currencies with a price book."""
        ...


class Journal(Protocol):
    """Where single transfers are posted."""

    async def post_once(self, transfer: Transfer) -> PostedTransfer:
        """Post, or return what was posted under the same idempotency key."""
        ...


class TenantEvents(Protocol):
    """What the others are told."""

    def tenant_created(self, tenant: Tenant) -> None:
        """A tenant was created."""
        ...


class Policies(Protocol):
    """What the gateways know of tenants."""

    async def refresh(self, tenant_ids: Collection[str]) -> bool:
        """Tell them what the database says of these; False when the bus is away."""
        ...


async def create_tenant(
    tenants: Tenants,
    policies: Policies,
    events: TenantEvents,
    *,
    tenant_id: str,
    name: str,
    currency: str,
) -> Tenant:
    """Create a tenant that pays in `currency`; raise Rejected when that has no prices."""
    checked_tenant_id(tenant_id)
    name = checked_name(name)
    priced = await tenants.currencies()
    if checked_currency(currency) not in priced:
        known = ", ".join(sorted(priced))
        raise Rejected(f"there are no prices in {currency}; there are in: {known}")
    tenant = await tenants.add(tenant_id, name, currency)
    # Should the bus be away, it is written before the tenant's first key.
    await policies.refresh([tenant_id])
    events.tenant_created(tenant)
    return tenant


async def top_up(
    tenants: Tenants,
    journal: Journal,
    *,
    transfer_id: UUID,
    tenant_id: str,
    amount_nanos: int,
    currency: str,
    reference: str,
) -> PostedTransfer:
    """Add paid-in money to a tenant's balance; the same `reference` again changes nothing.

    Raises Conflict when the reference was used for another amount, or for one that was undone.
    """
    tenant = await tenants.get(tenant_id)
    if checked_currency(currency) != tenant.currency:
        raise Rejected(f"tenant {tenant_id} pays in {tenant.currency}, not {currency}")
    wanted = ledger.top_up(
        transfer_id, tenant_id, checked_top_up(amount_nanos), currency, checked_reference(reference)
    )
    posted = await journal.post_once(wanted)
    if posted.transfer.postings != wanted.postings:
        raise Conflict(
            f"reference {wanted.reason!r} was already used for another amount: "
            "use a new reference, or repeat the amount"
        )
    posted.refuse_undone()
    return posted
