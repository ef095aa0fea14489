"""Billing's books in memory, by the protocols of its use cases.

The same simulation also runs on the real ones (test_money.py), so these cannot stray far.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from busbar_billing.domain.leases import TTL_MS, Lease, Standing
from busbar_billing.domain.ledger import Account, AccountKind, Transfer
from busbar_billing.domain.metering import Meter
from busbar_billing.domain.prices import PriceBook, PriceBooks
from busbar_billing.domain.promotions import Credit, Spending
from busbar_billing.domain.statements import GivenBack
from busbar_billing.domain.usage import UsageRecord, UsageVoid
from busbar_billing.usecases.leases import Asker
from busbar_billing.usecases.post_usage import RatedRecord, Voided

CURRENCY = "USD"


@dataclass
class _Row:
    lease: Lease
    settles_at_sequence: int | None = None
    closed: bool = False


@dataclass
class MemoryLedger:
    """Leases, the inbox and the journal; one transaction at a time."""

    book: PriceBook
    now_ms: Callable[[], int]
    transfers: dict[str, Transfer] = field(default_factory=dict[str, Transfer])
    balances: dict[Account, int] = field(default_factory=dict[Account, int])
    tenants: set[str] = field(default_factory=set[str])
    rows: dict[UUID, _Row] = field(default_factory=dict[UUID, _Row])
    records: dict[UUID, RatedRecord] = field(default_factory=dict[UUID, RatedRecord])
    voids: dict[UUID, UsageVoid] = field(default_factory=dict[UUID, UsageVoid])

    def balance(self, kind: AccountKind, tenant_id: str) -> int:
        return self.balances.get(Account(kind, tenant_id, CURRENCY), 0)

    def outstanding(self, tenant_id: str) -> int:
        """What is left in leases that are not closed."""
        return sum(
            row.lease.left_nanos
            for row in self.rows.values()
            if row.lease.tenant_id == tenant_id and not row.closed
        )

    # --- leases ---------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def leasing(self) -> AsyncIterator[MemoryLedger]:
        yield self

    async def open_leases(self, gateway_id: str, tenant_ids: Collection[str]) -> list[Lease]:
        return [
            row.lease
            for row in self.rows.values()
            if row.lease.gateway_id == gateway_id
            and row.lease.tenant_id in tenant_ids
            and not row.lease.closing
        ]

    async def standings(self, asker: Asker, tenant_ids: Collection[str]) -> dict[str, Standing]:
        return {
            tenant_id: Standing(
                CURRENCY,
                self.balance(AccountKind.TENANT_AVAILABLE, tenant_id),
                owed_nanos=-self.balance(AccountKind.TENANT_RECEIVABLE, tenant_id),
                held_elsewhere_nanos=sum(
                    row.lease.left_nanos
                    for row in self.rows.values()
                    if row.lease.tenant_id == tenant_id
                    and not row.closed
                    and not (
                        (row.lease.gateway_id, row.lease.run_id) == (asker.gateway_id, asker.run_id)
                        and not row.lease.closing
                    )
                ),
            )
            for tenant_id in tenant_ids
            if tenant_id in self.tenants
        }

    async def settled_leases(self, sequence: int, limit: int) -> list[Lease]:
        found = [
            row.lease
            for row in self.rows.values()
            if not row.closed
            and row.settles_at_sequence is not None
            and row.settles_at_sequence <= sequence
        ]
        return found[:limit]

    async def add(self, leases: Sequence[Lease]) -> None:
        self.rows.update((lease.lease_id, _Row(lease)) for lease in leases)

    async def save(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self.rows[lease.lease_id].lease = lease

    async def close(self, leases: Sequence[Lease]) -> None:
        await self.save(leases)
        for lease in leases:
            self.rows[lease.lease_id].closed = True

    async def expire(self) -> None:
        for row in self.rows.values():
            if row.lease.expires_unix_ms < self.now_ms():
                row.lease = replace(row.lease, closing=True)

    async def unmarked(self) -> list[UUID]:
        return [
            lease_id
            for lease_id, row in self.rows.items()
            if row.lease.closing and not row.closed and row.settles_at_sequence is None
        ]

    async def mark(self, lease_ids: Sequence[UUID], sequence: int) -> None:
        for lease_id in lease_ids:
            self.rows[lease_id].settles_at_sequence = sequence

    async def any_to_close(self) -> bool:
        return any(row.lease.closing and not row.closed for row in self.rows.values())

    # --- usage ----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def posting(self, *, with_voids: bool) -> AsyncIterator[MemoryLedger]:
        del with_voids
        yield self

    async def price_books(self) -> PriceBooks:
        return PriceBooks([self.book])

    async def tenant_currencies(self, tenant_ids: Collection[str]) -> dict[str, str]:
        return {tenant_id: CURRENCY for tenant_id in tenant_ids if tenant_id in self.tenants}

    async def lock_used(self, meters: Collection[Meter]) -> dict[Meter, int]:
        return dict.fromkeys(meters, 0)

    async def add_used(self, consumed: Mapping[Meter, int]) -> None:
        assert not consumed, "prices here are flat"

    async def give_back_used(self, request_ids: Collection[UUID]) -> None:
        del request_ids

    async def posted(self, request_ids: Collection[UUID]) -> dict[UUID, UsageRecord]:
        return {key: self.records[key].record for key in request_ids if key in self.records}

    async def add_records(self, rated: Sequence[RatedRecord]) -> set[UUID]:
        fresh = {one.record.request_id: one for one in rated}
        fresh = {key: one for key, one in fresh.items() if key not in self.records}
        self.records.update(fresh)
        return set(fresh)

    async def add_voids(self, voids: Sequence[UsageVoid]) -> set[UUID]:
        fresh = {one.request_id: one for one in voids if one.request_id not in self.voids}
        self.voids.update(fresh)
        return set(fresh)

    async def add_transfers(self, transfers: Sequence[Transfer]) -> None:
        for transfer in transfers:
            assert transfer.idempotency_key not in self.transfers
            self.transfers[transfer.idempotency_key] = transfer
            for line in transfer.postings:
                before = self.balances.get(line.account, 0)
                self.balances[line.account] = before + line.amount_nanos

    async def leases(self, lease_ids: Collection[UUID]) -> dict[UUID, Lease]:
        return {
            lease_id: self.rows[lease_id].lease
            for lease_id in lease_ids
            if lease_id in self.rows and not self.rows[lease_id].closed
        }

    async def available(self, tenant_ids: Collection[str]) -> dict[str, int]:
        kind = AccountKind.TENANT_AVAILABLE
        return {tenant_id: self.balance(kind, tenant_id) for tenant_id in tenant_ids}

    async def spend(self, spent: Mapping[UUID, int]) -> None:
        for lease_id, nanos in spent.items():
            lease = self.rows[lease_id].lease
            until = max(lease.expires_unix_ms, self.now_ms() + TTL_MS)
            self.rows[lease_id].lease = replace(
                lease, posted_nanos=lease.posted_nanos + nanos, expires_unix_ms=until
            )

    async def voided(self, request_ids: Collection[UUID]) -> list[Voided]:
        both = [key for key in request_ids if key in self.records and key in self.voids]
        return [
            Voided(
                key,
                self.records[key].record.tenant_id,
                self.voids[key].reason,
                self.records[key].record.lease_id,
            )
            for key in both
        ]

    async def charges_of(self, request_ids: Collection[UUID]) -> list[Transfer]:
        found = [self.transfers.get(f"charge:{request_id}") for request_id in request_ids]
        return [one for one in found if one is not None]

    async def refunds_of(self, request_ids: Collection[UUID]) -> list[Transfer]:
        del request_ids
        return []

    async def noted(self, request_ids: Collection[UUID]) -> dict[UUID, str]:
        """No months are closed here, so there are no statements to give money back of."""
        del request_ids
        return {}

    async def given_back(self, number: str) -> GivenBack:
        del number
        return GivenBack(used_nanos=0, noted_nanos=0, single_nanos=0)

    async def lock_credits(self, tenant_ids: Collection[str]) -> list[Credit]:
        del tenant_ids
        return []

    async def credit_spent(
        self, request_ids: Collection[UUID]
    ) -> dict[UUID, Sequence[tuple[UUID, int]]]:
        del request_ids
        return {}

    async def credit_returned(self, request_ids: Collection[UUID]) -> dict[UUID, int]:
        del request_ids
        return {}

    async def add_spending(self, spending: Sequence[Spending]) -> None:
        assert not spending, "nobody has credit here"
