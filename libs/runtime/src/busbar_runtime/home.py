"""Where a platform keeps its state: data, logs, sockets, secrets, endpoints."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from busbar_messaging.bundles.sealing import SigningKey

REPO = Path(__file__).resolve().parents[4]
SECRET_BYTES = 24
# `is_running` takes the lock for a moment to see whether it is free: who gets none tries again.
HOLD_ATTEMPTS, HOLD_PAUSE_S = 25, 0.02

NATS_USERS = ("provisioner", "gateway", "billing", "scheduler", "agent", "telemetry", "operator")


@dataclass(frozen=True)
class Home:
    """Paths of one platform's state. The cache may be shared between homes."""

    root: Path
    cache: Path

    @classmethod
    def of(cls, root: Path | None = None, cache: Path | None = None) -> Home:
        """Arguments first, then BUSBAR_HOME and BUSBAR_CACHE, then the repository's .busbar."""
        default = REPO / ".busbar"
        home = root or Path(os.environ.get("BUSBAR_HOME") or default)
        shared = cache or Path(os.environ.get("BUSBAR_CACHE") or default / "cache")
        return cls(home.absolute(), shared.absolute())

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def endpoints_file(self) -> Path:
        return self.root / "endpoints.json"

    @property
    def console_log(self) -> Path:
        return self.logs / "console.log"

    @property
    def signing_key_file(self) -> Path:
        return self.run / "signing-key.pem"

    @property
    def lock_file(self) -> Path:
        return self.run / "lock"

    def make(self) -> None:
        """Create the directories; secrets are kept here, so they are for this user only."""
        self.root.mkdir(parents=True, exist_ok=True)
        for directory in (self.data, self.logs, self.run):
            directory.mkdir(mode=0o700, exist_ok=True)
        self.cache.mkdir(parents=True, exist_ok=True)

    def is_running(self) -> bool:
        """Whether a supervisor, or its warden, holds this home."""
        try:
            descriptor = os.open(self.lock_file, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def hold(self) -> int | None:
        """Take this home for the life of the returned descriptor; None when somebody has it."""
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        for _ in range(HOLD_ATTEMPTS):
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            time.sleep(HOLD_PAUSE_S)
        os.close(descriptor)
        return None


@dataclass(frozen=True)
class Secrets:
    """Made at the first start of a home and kept, so that data written then stays readable."""

    nats: Mapping[str, str]
    postgres_admin: str
    postgres_billing: str
    operator_token: str
    key_hmac: str
    signing_key: str
    """Seals model bundles, their code too: a private key in PEM."""

    @property
    def signing_key_public(self) -> str:
        """Its public half, as services are told whom to trust."""
        return SigningKey.from_pem(self.signing_key.encode()).public

    @classmethod
    def of(cls, home: Home) -> Secrets:
        path = home.run / "secrets.json"
        kept: dict[str, Any] = {}
        with suppress(FileNotFoundError):
            kept = json.loads(path.read_text())
        nats: dict[str, str] = kept.get("nats", {})
        made = cls(
            nats={user: nats.get(user) or secrets.token_hex(SECRET_BYTES) for user in NATS_USERS},
            postgres_admin=kept.get("postgres_admin") or secrets.token_hex(SECRET_BYTES),
            postgres_billing=kept.get("postgres_billing") or secrets.token_hex(SECRET_BYTES),
            operator_token=kept.get("operator_token") or "op_" + secrets.token_hex(SECRET_BYTES),
            key_hmac=kept.get("key_hmac") or secrets.token_hex(SECRET_BYTES),
            signing_key=kept.get("signing_key") or SigningKey.make().pem().decode(),
        )
        if kept != vars(made):
            write_private_json(path, vars(made))
        write_private(home.signing_key_file, made.signing_key)
        return made


def write_private_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace the file as a whole, readable by this user only."""
    write_private(path, json.dumps(value, indent=2))


def write_private(path: Path, text: str) -> None:
    """Replace the file as a whole, readable by this user only."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    scratch.replace(path)
