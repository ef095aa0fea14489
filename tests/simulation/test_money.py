"""No balance goes below zero and nothing leaks, whatever is lost, repeated, late or killed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

import asyncpg
import pytest
from busbar_billing.adapters.postgres.database import Database, open_database
from busbar_billing.adapters.postgres.journal import Journal
from busbar_billing.adapters.postgres.leases import LeaseRows, Leases
from busbar_billing.adapters.postgres.posting import Ledger, LedgerTransaction
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.adapters.postgres.warrants import Warrants
from busbar_billing.domain import ledger
from busbar_billing.domain.ledger import AccountKind, TransferKind
from busbar_billing.domain.prices import Component, Price, PriceBook
from busbar_billing.migrate import admit_service, apply_migrations
from busbar_runtime.pytest_plugin import PostgresServer
from hypothesis import given, settings
from hypothesis import strategies as st

from simulation.memory_ledger import CURRENCY, MemoryLedger
from simulation.money_world import TICK_S, Gateway, World

TENANTS = 2
SLOW_S = 27.0
"""How long a slow answer takes."""
STEPS, STEPS_ON_POSTGRES = 250, 120
CROWD = 12
POSTED_PROBABILITY = 0.3
BOOK = PriceBook(
    version=1,
    currency=CURRENCY,
    effective_from_unix_ns=1_790_000_000 * 10**9,
    quantum_nanos=1,
    classes={"default": {Component.OUTPUT_TOKEN: Price(1, 1)}},
)
"""A nano a token, so that costs are whatever the simulation says."""


def check(available: int, held: int, owed: int, outstanding: int) -> None:
    """What holds at every moment, of each tenant."""
    assert available >= 0
    assert available + held - owed >= 0
    assert held == outstanding


def delivered_nanos(world: World, tenant_id: str) -> int:
    """What the answers that a tenant has come to."""
    return sum(one.charged for one in world.delivered.values() if one.tenant_id == tenant_id)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), paid_in=st.integers(0, 5_000))
def test_balances_stay_above_zero_and_leases_come_back(seed: int, paid_in: int) -> None:
    charged, delivered = asyncio.run(in_memory(seed, paid_in))

    assert charged == delivered


async def in_memory(seed: int, paid_in: int) -> tuple[list[int], list[int]]:
    """What each tenant was charged and what of that was delivered, once all has come to rest."""
    world: World
    books = MemoryLedger(BOOK, lambda: world.now_ms())  # noqa: PLW0108 - the world is not there yet
    tenants = [f"tenant-{number}" for number in range(TENANTS)]
    world = World(random.Random(seed), books, tenants)
    books.tenants.update(tenants)
    for tenant_id in tenants:
        await books.add_transfers(
            [ledger.top_up(world.new_id(), tenant_id, paid_in, CURRENCY, "first")]
        )
    for _ in range(STEPS):
        await world.step()
        for tenant_id in tenants:
            check(*standing(books, tenant_id))
    await world.come_to_rest()

    charged = list[int]()
    for tenant_id in tenants:
        available, held, owed, outstanding = standing(books, tenant_id)
        assert held == outstanding == 0
        charged.append(paid_in - available + owed)
    return charged, [delivered_nanos(world, tenant_id) for tenant_id in tenants]


def standing(books: MemoryLedger, tenant_id: str) -> tuple[int, int, int, int]:
    return (
        books.balance(AccountKind.TENANT_AVAILABLE, tenant_id),
        books.balance(AccountKind.TENANT_HELD, tenant_id),
        -books.balance(AccountKind.TENANT_RECEIVABLE, tenant_id),
        books.outstanding(tenant_id),
    )


_EXPIRE = """
    UPDATE leases SET expires_at = now() - interval '1 s' WHERE expires_at < $1
    AND closing_at IS NULL
"""
_STANDING = """
    SELECT
        coalesce(sum(balance_nanos) FILTER (WHERE kind = 'tenant_available'), 0)::int8,
        coalesce(sum(balance_nanos) FILTER (WHERE kind = 'tenant_held'), 0)::int8,
        coalesce(-sum(balance_nanos) FILTER (WHERE kind = 'tenant_receivable'), 0)::int8,
        (
            SELECT coalesce(sum(granted_nanos - returned_nanos - posted_nanos), 0)::int8
            FROM leases WHERE tenant_id = $1 AND closed_at IS NULL
        )
    FROM accounts JOIN account_balances USING (account_id) WHERE tenant_id = $1
"""


WARRANTS = Warrants(b"a key of its own")


@dataclass
class PostgresStore:
    """The real books. The database's clock stands far behind the simulation's, so that only what
    has expired in virtual time is ever found expired."""

    database: Database
    admin: asyncpg.Connection
    world: World | None = None
    journal: Journal = field(init=False)

    def __post_init__(self) -> None:
        self.journal = Journal(self.database, WARRANTS)
        self._leases = Leases(self.database, self.journal)
        self._ledger = Ledger(self.database, self.journal, Prices(self.database, WARRANTS))

    def leasing(self) -> AbstractAsyncContextManager[LeaseRows]:
        return self._leases.leasing()

    def posting(self, *, with_voids: bool) -> AbstractAsyncContextManager[LedgerTransaction]:
        return self._ledger.posting(with_voids=with_voids)

    async def expire(self) -> None:
        assert self.world is not None
        now = datetime.fromtimestamp(self.world.now_ms() / 1000, UTC)
        await self.admin.execute(_EXPIRE, now)
        await self._leases.expire()

    async def unmarked(self) -> list[UUID]:
        return await self._leases.unmarked()

    async def mark(self, lease_ids: Sequence[UUID], sequence: int) -> None:
        await self._leases.mark(lease_ids, sequence)

    async def any_to_close(self) -> bool:
        return await self._leases.any_to_close()

    async def open_accounts(self, tenants: Collection[str], paid_in: int) -> None:
        for tenant_id in tenants:
            await self.admin.execute(
                "INSERT INTO tenants (tenant_id, name, currency) VALUES ($1, $1, $2)",
                tenant_id,
                CURRENCY,
            )
            assert self.world is not None
            identity = self.world.new_id()
            await self.journal.post_once(
                ledger.top_up(identity, tenant_id, paid_in, CURRENCY, "first")
            )

    async def standing(self, tenant_id: str) -> tuple[int, int, int, int]:
        row = await self.admin.fetchrow(_STANDING, tenant_id)
        assert row is not None
        available, held, owed, outstanding = row
        return available, held, owed, outstanding


@pytest.fixture(scope="module")
async def books(postgres_server: PostgresServer) -> AsyncIterator[PostgresStore]:
    created = postgres_server.create_database()
    await asyncio.to_thread(apply_migrations, created.admin_dsn)
    await admit_service(created.admin_dsn, created.billing_dsn)
    admin = await asyncpg.connect(created.admin_dsn)
    async with open_database(created.billing_dsn) as database:
        await Prices(database, WARRANTS).add(BOOK)
        yield PostgresStore(database, admin)
    await admin.close()


@pytest.mark.parametrize("seed", range(3))
async def test_the_real_ledger_keeps_the_same_promises(books: PostgresStore, seed: int) -> None:
    draws = random.Random(seed)
    paid_in = draws.choice([50, 300, 2_000])
    tenants = [f"tenant-{seed}-{number}" for number in range(TENANTS)]
    world = books.world = World(draws, books, tenants)
    await books.open_accounts(tenants, paid_in)
    for _ in range(STEPS_ON_POSTGRES):
        await world.step()
        for tenant_id in tenants:
            check(*await books.standing(tenant_id))
    await world.come_to_rest()

    for tenant_id in tenants:
        available, held, owed, outstanding = await books.standing(tenant_id)
        assert held == outstanding == 0
        assert paid_in - available + owed == delivered_nanos(world, tenant_id)


async def one_gateway(paid_in: int, seed: int) -> tuple[MemoryLedger, World, Gateway]:
    """A tenant, and a gateway of which nothing is lost."""
    world: World
    books = MemoryLedger(BOOK, lambda: world.now_ms())  # noqa: PLW0108 - as above
    world = World(random.Random(seed), books, ["tenant"], faults=False)
    books.tenants.add("tenant")
    await books.add_transfers([ledger.top_up(world.new_id(), "tenant", paid_in, CURRENCY, "first")])
    world.start_gateway("g1")
    return books, world, world.gateways[0]


async def test_what_the_ledger_charges_less_than_was_claimed_is_not_lost_to_the_tenant() -> None:
    """Tiers and allowances: gateways reserve the dearest price, the ledger charges half of it."""
    books, world, gateway = await one_gateway(paid_in=2_000, seed=1)
    for _ in range(200):
        if not gateway.waiting:
            world.send_request(gateway, cost=40, charged=20)
        await world.pass_time(TICK_S)
        while gateway.served:
            world.finish_request(gateway)
        await world.post(all_of_it=True)

    available, held, owed, _ = standing(books, "tenant")
    assert owed == 0
    assert available + held < 40


@settings(max_examples=10)
@given(
    paid_in=st.integers(1, 60),
    cost=st.integers(1, 12),
    factor=st.integers(2, 60),
    seed=st.integers(0, 2**32),
)
def test_what_covers_a_request_is_spent_although_most_cost_more(
    paid_in: int, cost: int, factor: int, seed: int
) -> None:
    left, owed = asyncio.run(spent_to_the_end(paid_in, cost, factor * cost, seed))

    assert owed == 0
    assert left < cost


async def spent_to_the_end(paid_in: int, cost: int, likely: int, seed: int) -> tuple[int, int]:
    """What is left, and owed, of a balance that is asked for requests one after another."""
    books, world, gateway = await one_gateway(paid_in, seed)
    for _ in range(2 * paid_in // cost + 20):
        if not gateway.waiting:
            world.send_request(gateway, cost, cost, likely, least=cost)
        await world.pass_time(TICK_S)
        while gateway.served:
            world.finish_request(gateway)
        await world.post(all_of_it=True)
        check(*standing(books, "tenant"))
    available, held, owed, _ = standing(books, "tenant")
    return available + held, owed


@settings(max_examples=8)
@given(
    paid_in=st.integers(100, 1_000),
    claim=st.integers(5, 60),
    less=st.integers(0, 30),
    seed=st.integers(0, 2**32),
)
def test_of_a_crowd_nobody_is_refused_whom_the_balance_covers(
    paid_in: int, claim: int, less: int, seed: int
) -> None:
    left, refused_with = asyncio.run(a_crowd(paid_in, claim, max(1, claim - less), seed))

    assert max(refused_with, default=0) < claim
    assert left < claim


async def a_crowd(paid_in: int, claim: int, cost: int, seed: int) -> tuple[int, list[int]]:
    """What is left when many ask at once, and what each of them that was refused could have had:
    charges are posted late, and claims are more than they come to."""
    books, world, gateway = await one_gateway(paid_in, seed)
    spent, refused_with = 0, list[int]()
    for _ in range(2 * paid_in // cost + 20):
        while len(gateway.waiting) + len(gateway.served) < CROWD:
            world.send_request(gateway, cost, cost, claim, least=claim)
        before = list(gateway.waiting)
        await world.pass_time(TICK_S)
        kept = {*map(id, gateway.waiting), *map(id, gateway.served)}
        refused = [one for one in before if id(one) not in kept and world.now < one.waits_until]
        refused_with += [paid_in - spent] * bool(refused)
        while gateway.served:
            spent += cost
            world.finish_request(gateway)
        if world.draws.random() < POSTED_PROBABILITY:
            await world.post(all_of_it=True)
        check(*standing(books, "tenant"))
    return paid_in - spent, refused_with


async def test_what_is_left_of_a_balance_is_not_lent_in_ever_smaller_pieces() -> None:
    """Each grant stays in the journal for ever."""
    books, world, gateway = await one_gateway(paid_in=10_000, seed=1)
    for _ in range(120):
        if not gateway.waiting:
            world.send_request(gateway, cost=2_700, charged=2_700, likely=2_700, least=2_700)
        await world.pass_time(TICK_S if world.delivered else SLOW_S)
        while gateway.served:
            world.finish_request(gateway)
        await world.post(all_of_it=True)
    holds = [
        abs(one.postings[0].amount_nanos)
        for one in books.transfers.values()
        if one.kind is TransferKind.LEASE_HOLD
    ]

    assert delivered_nanos(world, "tenant") == 3 * 2_700
    assert len(holds) <= len(world.delivered) + 2
    assert min(holds) >= 1_000
