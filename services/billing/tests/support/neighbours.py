"""A bus and a database of a test's own, to be hurt."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from billing_parts import Gateway
from busbar_billing.migrate import admit_service, apply_migrations
from busbar_messaging import provision
from busbar_messaging.connection import close, connect
from busbar_runtime.platform import Platform
from nats.aio.client import Client

DISK_BYTES = 192 * 1024 * 1024
_BALLAST = bytes(64 * 1024)


@dataclass(frozen=True)
class Disk:
    """A small file system that nobody else uses."""

    place: Path

    def fill(self) -> None:
        """Take what is left of it, whatever others take meanwhile."""
        with (self.place / "ballast").open("wb", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(_BALLAST)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def free(self) -> None:
        """Give it back."""
        (self.place / "ballast").unlink()


@dataclass(frozen=True)
class Neighbours:
    """What billing talks to."""

    platform: Platform
    environment: Mapping[str, str]
    """Of the service, but for its ports."""
    gateway: Gateway
    bus: Client
    disk: Disk | None
    """The database's; None where we may not mount one."""

    async def database(self) -> asyncpg.Connection:
        """A connection as the database's owner."""
        return await asyncpg.connect(self.platform.endpoints["postgres"])


@contextlib.asynccontextmanager
async def neighbours(place: Path, disk_bytes: int = DISK_BYTES) -> AsyncIterator[Neighbours]:
    """Start them, provisioned and migrated; the database with a disk of that size."""
    platform = Platform(place, parts=["nats", "postgres-database"])
    with _small_disk(platform.home.data / "postgres", disk_bytes) as disk:
        async with platform:
            found, secrets = platform.endpoints, platform.secrets
            admin_dsn: str = found["postgres"]
            at = admin_dsn.rpartition("@")[2]
            billing_dsn = f"postgresql://busbar_billing:{secrets.postgres_billing}@{at}"
            apply_migrations(admin_dsn)
            await admit_service(admin_dsn, billing_dsn)
            settings = provision.ProvisionSettings(
                nats_url=found["nats"],
                nats_user="provisioner",
                nats_password=found["nats_credentials"]["provisioner"],
            )
            bus = await connect(settings, "neighbours")
            await provision.apply(bus, settings)
            environment = {
                "BUSBAR_NATS_URL": found["nats"],
                "BUSBAR_NATS_USER": "billing",
                "BUSBAR_NATS_PASSWORD": found["nats_credentials"]["billing"],
                "BUSBAR_POSTGRES_DSN": billing_dsn,
            }
            yield Neighbours(platform, environment, Gateway(bus.jetstream(timeout=5)), bus, disk)
            await close(bus)


@contextlib.contextmanager
def _small_disk(at: Path, size_bytes: int) -> Iterator[Disk | None]:
    at.mkdir(parents=True)
    options = f"size={size_bytes},mode=0700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(at)]
    if os.geteuid() != 0 or subprocess.call(mount, stderr=subprocess.DEVNULL) != 0:
        yield None
        return
    try:
        yield Disk(at)
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)
