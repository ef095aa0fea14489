"""The fixtures that adapter tests build on."""

from __future__ import annotations

import subprocess

import nats
from busbar_runtime.postgres import binary
from busbar_runtime.pytest_plugin import NatsServer, PostgresServer


async def test_the_nats_fixture_accepts_every_service_user(nats_server: NatsServer) -> None:
    for user, password in nats_server.credentials.items():
        client = await nats.connect(nats_server.url, user=user, password=password)

        assert client.is_connected
        await client.close()


def test_each_database_is_fresh_and_open_to_the_billing_role(
    postgres_server: PostgresServer,
) -> None:
    one, other = postgres_server.create_database(), postgres_server.create_database()
    asked = [binary("psql"), "--no-psqlrc", "--tuples-only", "--no-align"]
    subprocess.run([*asked, one.admin_dsn, "--command", "CREATE TABLE t ()"], check=True)
    who = subprocess.run(
        [*asked, other.billing_dsn, "--command", "SELECT current_user"],
        check=True,
        capture_output=True,
    )
    tables = subprocess.run(
        [*asked, other.admin_dsn, "--command", r"\dt"], check=True, capture_output=True
    )

    assert who.stdout.decode().strip() == "busbar_billing"
    assert tables.stdout == b""
