"""Billing on real parts: a migrated database, a provisioned bus, the service as a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from account_parts import Account, open_account
from billing_parts import Gateway, Json, Service, environment_of, running
from busbar_billing.adapters.postgres.database import open_database
from busbar_billing.migrate import admit_service, apply_migrations, isolate_tenants
from busbar_messaging import provision, topology
from busbar_messaging.connection import close, connect
from busbar_runtime.ports import PortPool
from busbar_runtime.pytest_plugin import Database, NatsServer, PostgresServer
from nats.aio.client import Client
from nats.js.kv import KeyValue
from past_books import Books, past_books
from planted import Messages, Parts, copy_of, make_busy


@pytest.fixture(scope="session")
async def database(postgres_server: PostgresServer) -> Database:
    """A database of its own, migrated, with the service's login."""
    created = postgres_server.create_database()
    await asyncio.to_thread(apply_migrations, created.admin_dsn)
    await admit_service(created.admin_dsn, created.billing_dsn)
    return created


@pytest.fixture(scope="session")
async def bus(nats_server: NatsServer) -> AsyncIterator[Client]:
    """The bus as the provisioner, who may do anything."""
    password = nats_server.credentials["provisioner"]
    settings = provision.ProvisionSettings(
        nats_url=nats_server.url,
        nats_user="provisioner",
        nats_password=password,  # pyright: ignore[reportArgumentType]
    )
    client = await connect(settings, "billing-tests")
    await provision.apply(client, settings)
    yield client
    await close(client)


@pytest.fixture(scope="session")
def ports() -> PortPool:
    """Free ports, kept from others."""
    return PortPool()


@pytest.fixture(scope="session")
async def billing(
    nats_server: NatsServer, database: Database, bus: Client, ports: PortPool
) -> AsyncIterator[Service]:
    """The service, running; shared by the tests that do not harm it for long."""
    del bus
    async with running(environment_of(nats_server, database), ports) as service:
        yield service


@pytest.fixture
async def tenant(billing: Service) -> str:
    """A fresh tenant."""
    return await billing.tenant()


@pytest.fixture
def gateway(bus: Client) -> Gateway:
    """A gateway's pen."""
    return Gateway(bus.jetstream(timeout=5))


@pytest.fixture
async def keys_bucket(bus: Client) -> KeyValue:
    """What gateways watch."""
    return await bus.jetstream(timeout=5).key_value(topology.KEYS.name)


@pytest.fixture
async def admin(database: Database) -> AsyncIterator[asyncpg.Connection]:
    """The database as its owner."""
    connection = await asyncpg.connect(database.admin_dsn)
    yield connection
    await connection.close()


@pytest.fixture
async def as_service(database: Database) -> AsyncIterator[asyncpg.Connection]:
    """The database as the service."""
    connection = await asyncpg.connect(database.billing_dsn)
    yield connection
    await connection.close()


@pytest.fixture
async def mine(billing: Service, gateway: Gateway, admin: asyncpg.Connection) -> Account:
    """A customer."""
    return await open_account(billing, gateway, admin)


@pytest.fixture
async def theirs(billing: Service, gateway: Gateway, admin: asyncpg.Connection) -> Account:
    """Another one."""
    return await open_account(billing, gateway, admin)


@pytest.fixture
async def document(mine: Account) -> Json:
    """The customers' API, documented."""
    headers = {"authorization": f"Bearer {mine.keys['read_usage']['key']}"}
    return (await mine.client.get(f"{mine.url}/openapi.json", headers=headers)).json()


@pytest.fixture(scope="session")
async def busy_ledger(postgres_server: PostgresServer) -> tuple[Database, Messages]:
    """A ledger in which much has happened, audited and sealed, and what was delivered to it; for
    copies only."""
    made = postgres_server.create_database()
    await asyncio.to_thread(apply_migrations, made.admin_dsn)
    await isolate_tenants(made.admin_dsn)
    await admit_service(made.admin_dsn, made.billing_dsn)
    async with open_database(made.billing_dsn) as pool:
        parts = Parts(pool)
        await make_busy(parts)
        assert await parts.audited_from_seals() == []
    return made, parts.stream


@pytest.fixture
async def ledger_copy(busy_ledger: tuple[Database, Messages]) -> Database:
    """A copy of the busy ledger for one test."""
    return await copy_of(busy_ledger[0])


@pytest.fixture
async def busy(
    ledger_copy: Database, busy_ledger: tuple[Database, Messages]
) -> AsyncIterator[Parts]:
    """The stores of that copy."""
    async with open_database(ledger_copy.billing_dsn) as pool:
        yield Parts(pool, Messages(dict(busy_ledger[1].kept)))


@pytest.fixture
async def books(database: Database, admin: asyncpg.Connection) -> AsyncIterator[Books]:
    """A tenant with a past."""
    async with open_database(database.billing_dsn) as pool:
        yield await past_books(pool, admin)
