"""Grant, renew and reclaim credit leases."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import UUID

from busbar_billing.domain.leases import Ask, Grant, Lease, Refusal, Standing, answer_ask
from busbar_billing.domain.ledger import Transfer, lease_hold, lease_release, receivable_paid

_CLOSED_AT_ONCE_MAX = 1_000
_SCARCE = (Refusal.BALANCE, Refusal.BUDGET)


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks."""

    gateway_id: str
    run_id: str
    """Of two runs of a gateway the later one has the greater id."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A grant, and what else its tenant has."""

    grant: Grant
    available_nanos: int
    held_elsewhere_nanos: int = 0
    budget_ends_unix_ms: int = 0
    over_budget: bool = False
    """Leases hold more than is left of the month's budget."""


class LeaseTransaction(Protocol):
    """One database transaction on leases and the journal."""

    async def open_leases(self, gateway_id: str, tenant_ids: Collection[str]) -> Sequence[Lease]:
        """This gateway's leases of these tenants that take more, of any run; locked."""
        ...

    async def standings(self, asker: Asker, tenant_ids: Collection[str]) -> Mapping[str, Standing]:
        """Of those of these tenants that exist; their balances are locked."""
        ...

    async def settled_leases(self, sequence: int, limit: int) -> Sequence[Lease]:
        """Leases that close now that USAGE is posted up to `sequence`; locked."""
        ...

    async def add(self, leases: Sequence[Lease]) -> None:
        """Add opened ones."""
        ...

    async def save(self, leases: Sequence[Lease]) -> None:
        """Save changed ones."""
        ...

    async def close(self, leases: Sequence[Lease]) -> None:
        """Save, and close for good."""
        ...

    async def add_transfers(self, transfers: Sequence[Transfer]) -> None:
        """Append to the journal."""
        ...


class LeaseStore(Protocol):
    """Where leases are kept."""

    def leasing(self) -> AbstractAsyncContextManager[LeaseTransaction]:
        """Begin a transaction."""
        ...


async def answer_asks(
    store: LeaseStore,
    asker: Asker,
    asks: Sequence[Ask],
    new_id: Callable[[], UUID],
    now_unix_ms: int,
) -> list[Answered]:
    """Answer a gateway's asks, each tenant at most once, in one transaction.

    Leases of an earlier run of the same gateway begin to close: it is gone.
    Raises Unavailable when the database cannot be reached; then nothing changed.
    """
    tenant_ids = {ask.tenant_id for ask in asks}
    async with store.leasing() as transaction:
        leases = await transaction.open_leases(asker.gateway_id, tenant_ids)
        mine = {lease.tenant_id: lease for lease in leases if lease.run_id == asker.run_id}
        left_behind = [replace(one, closing=True) for one in leases if one.run_id < asker.run_id]
        standings = await transaction.standings(asker, tenant_ids)
        grants = [
            answer_ask(
                ask,
                mine.get(ask.tenant_id),
                standings.get(ask.tenant_id),
                _fresh(ask.tenant_id, asker, standings, new_id),
                now_unix_ms,
            )
            for ask in asks
        ]
        given = [one.lease for one in grants if one.opened and one.lease is not None]
        changed = [one.lease for one in grants if not one.opened and one.lease is not None]
        await transaction.add(given)
        await transaction.save([*changed, *left_behind])
        await transaction.add_transfers(transfers_of(grants, standings, new_id))
    return [_answered(one, standings.get(one.tenant_id)) for one in grants]


def _fresh(
    tenant_id: str, asker: Asker, standings: Mapping[str, Standing], new_id: Callable[[], UUID]
) -> Lease | None:
    standing = standings.get(tenant_id)
    if standing is None:
        return None
    return Lease(new_id(), tenant_id, standing.currency, asker.gateway_id, asker.run_id)


def _answered(grant: Grant, standing: Standing | None) -> Answered:
    if standing is None:
        return Answered(grant, 0)
    moved = grant.released_nanos - grant.held_nanos
    available, elsewhere = standing.available_nanos + moved, standing.held_elsewhere_nanos
    left = standing.budget_left_nanos
    if left is not None and grant.refusal is Refusal.BUDGET:
        available = max(0, min(available, left + moved))
        elsewhere = max(0, min(elsewhere, elsewhere + left + moved))
    over_budget = left is not None and left + moved < 0
    return Answered(grant, available, elsewhere, standing.budget_ends_unix_ms, over_budget)


def transfers_of(
    grants: Sequence[Grant], standings: Mapping[str, Standing], new_id: Callable[[], UUID]
) -> list[Transfer]:
    """What the grants move, and what tenants owe taken from what they have now."""
    moved: list[Transfer] = []
    for grant in grants:
        lease, standing = grant.lease, standings.get(grant.tenant_id)
        if lease is not None and grant.released_nanos:
            moved.append(lease_release(new_id(), lease, grant.released_nanos))
        if lease is not None and grant.held_nanos:
            moved.append(lease_hold(new_id(), lease, grant.held_nanos))
        if standing is not None and standing.paid_nanos:
            currency = standing.currency
            paid = receivable_paid(new_id(), grant.tenant_id, currency, standing.paid_nanos)
            moved.append(paid)
    return moved


def to_be_recalled(asks: Sequence[Ask], answers: Sequence[Answered]) -> list[str]:
    """Tenants for whom somebody waits in vain although other gateways hold money of theirs, and
    those of which more is held than their budget has left.

    For a mere wish nobody gives back: two gateways that are both low would hand the same money to
    and fro. Who asks for nothing gives back: that is how a recall is followed, and starts no other.
    """
    return [
        ask.tenant_id
        for ask, one in zip(asks, answers, strict=True)
        if (ask.need_nanos and one.grant.refusal in _SCARCE and one.held_elsewhere_nanos)
        or (one.over_budget and max(ask.want_nanos, ask.need_nanos))
    ]


async def close_settled(store: LeaseStore, sequence: int, new_id: Callable[[], UUID]) -> int:
    """Close the leases whose usage is all posted, USAGE being posted up to `sequence`; give what
    is left of them back. Returns how many there were."""
    async with store.leasing() as transaction:
        leases = await transaction.settled_leases(sequence, _CLOSED_AT_ONCE_MAX)
        ended = [replace(one, returned_nanos=one.returned_nanos + one.left_nanos) for one in leases]
        await transaction.close(ended)
        await transaction.add_transfers(
            [
                lease_release(new_id(), after, before.left_nanos)
                for before, after in zip(leases, ended, strict=True)
                if before.left_nanos
            ]
        )
    return len(leases)
