"""Fixtures for adapter tests: a real NATS for each package's tests, one real Postgres for all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from busbar_runtime.home import REPO, Home
from busbar_runtime.platform import Platform
from busbar_runtime.ports import LOOPBACK
from busbar_runtime.postgres import ADMIN, BILLING, binary


@dataclass(frozen=True)
class NatsServer:
    """A running NATS with the product's configuration. `credentials` maps user to password."""

    url: str
    monitor_url: str
    credentials: dict[str, str]
    platform: Platform

    def environment(self, user: str) -> dict[str, str]:
        """What a service that is `user` would find in its environment."""
        return {
            "BUSBAR_NATS_URL": self.url,
            "BUSBAR_NATS_USER": user,
            "BUSBAR_NATS_PASSWORD": self.credentials[user],
        }


@dataclass(frozen=True)
class Database:
    """A fresh, empty database: as its owner (migrations) and as the billing service's role."""

    admin_dsn: str
    billing_dsn: str


@dataclass(frozen=True)
class PostgresServer:
    """A running Postgres."""

    admin_dsn: str
    platform: Platform

    def create_database(self) -> Database:
        """Make a database that nobody else uses."""
        name = f"test_{uuid4().hex}"
        server, _, _ = self.admin_dsn.rpartition("/")
        subprocess.run(
            [
                binary("psql"),
                "--quiet",
                "--no-psqlrc",
                "--command",
                f"CREATE DATABASE {name}",
                f"{server}/postgres",
            ],
            check=True,
            env={**os.environ, "PGOPTIONS": ""},
        )
        secrets = self.platform.secrets
        at = f"{LOOPBACK}:{self.admin_dsn.rpartition(':')[2].partition('/')[0]}"
        return Database(
            admin_dsn=f"postgresql://{ADMIN}:{secrets.postgres_admin}@{at}/{name}",
            billing_dsn=f"postgresql://{BILLING}:{secrets.postgres_billing}@{at}/{name}",
        )


def pytest_configure(config: pytest.Config) -> None:
    """Let what tests start end at Ctrl-C, also where xdist's process ignores it itself."""
    if hasattr(config, "workerinput"):
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what needs a whole platform: no process is left alone with what takes longest."""
    whole = {("tests", "flows"), ("tests", "faults")}
    items.sort(key=lambda item: item.path.relative_to(config.rootpath).parts[:2] not in whole)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each package a bus of its own: what one writes there is noise to the next."""
    if "nats_server" in metafunc.fixturenames:
        package = metafunc.definition.path.relative_to(metafunc.config.rootpath).parts[:2]
        metafunc.parametrize(
            "nats_server",
            ["/".join(package)],
            indirect=True,
            scope="session",
            ids=[pytest.HIDDEN_PARAM],
        )


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """NATS alone; streams and buckets are the test's matter (busbar_messaging.provision.apply)."""
    platform = Platform(tmp_path_factory.mktemp("nats"), parts=["nats"])
    platform.launch()
    found: dict[str, Any] = platform.endpoints
    yield NatsServer(found["nats"], found["nats_monitor"], found["nats_credentials"], platform)
    platform.shutdown()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """Postgres with the services' role and an empty database "busbar"; see create_database."""
    platform = Platform(tmp_path_factory.mktemp("postgres"), parts=["postgres-database"])
    platform.launch()
    yield PostgresServer(platform.endpoints["postgres"], platform)
    platform.shutdown()


@pytest.fixture(scope="session")
def demo_models() -> Path:
    """The folder of the built demo models, one Triton model each; built here when not yet there."""
    cache = Home.of().cache
    build = REPO / "deploy" / "demo" / "build" / "build_models.py"
    subprocess.run([sys.executable, str(build), "--cache", str(cache)], check=True)
    return cache / "models"
