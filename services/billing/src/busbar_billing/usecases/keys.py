"""Create and revoke API keys: in the database first, then at every gateway."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from busbar_errors import Rejected

from busbar_billing.domain.keys import ApiKey, key_digest, key_prefix, key_text
from busbar_billing.domain.names import checked_deployments, checked_name


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as the database holds it."""

    key: ApiKey
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a key. `propagated`: gateways have been told; if not they are within seconds of
    the bus being back."""

    stored: StoredKey
    propagated: bool


class KeyStore(Protocol):
    """Where keys are kept."""

    async def add(self, key: ApiKey) -> StoredKey:
        """Add one; raise NotFound when there is no such tenant."""
        ...

    async def revoke(self, key_id: str) -> StoredKey:
        """Revoke, or return it as it is when it is revoked already; raise NotFound."""
        ...


class KeyDirectory(Protocol):
    """What the gateways watch."""

    async def publish(self, key: ApiKey) -> bool:
        """Tell the gateways of a key; False when the bus is away."""
        ...

    async def withdraw(self, key: ApiKey) -> bool:
        """Take a key from the gateways; False when the bus is away."""
        ...


class KeyEvents(Protocol):
    """What the others are told."""

    def key_created(self, key: ApiKey) -> None:
        """A key was created."""
        ...

    def key_revoked(self, key: ApiKey) -> None:
        """A key was revoked."""
        ...


@dataclass(frozen=True, slots=True)
class NewKey:
    """What somebody asked for."""

    tenant_id: str
    name: str
    deployments: list[str]
    expires_unix_ms: int | None


async def create_key(
    store: KeyStore,
    directory: KeyDirectory,
    events: KeyEvents,
    wanted: NewKey,
    *,
    key_id: str,
    secret: bytes,
    hmac_secret: bytes,
    now_unix_ms: int,
) -> tuple[str, Change]:
    """Create a key from 32 random bytes; returns its text, which is shown once and kept nowhere."""
    if wanted.expires_unix_ms is not None and wanted.expires_unix_ms <= now_unix_ms:
        raise Rejected("expires_at has passed already: give a time to come, or leave it out")
    text = key_text(secret)
    key = ApiKey(
        key_id=key_id,
        tenant_id=wanted.tenant_id,
        name=checked_name(wanted.name),
        digest=key_digest(hmac_secret, text),
        prefix=key_prefix(text),
        deployments=tuple(checked_deployments(wanted.deployments)),
        expires_unix_ms=wanted.expires_unix_ms,
    )
    stored = await store.add(key)
    propagated = await directory.publish(key)
    events.key_created(key)
    return text, Change(stored, propagated)


async def revoke_key(
    store: KeyStore, directory: KeyDirectory, events: KeyEvents, key_id: str
) -> Change:
    """Revoke a key: durable when this returns, effective at the gateways when `propagated`."""
    stored = await store.revoke(key_id)
    propagated = await directory.withdraw(stored.key)
    events.key_revoked(stored.key)
    return Change(stored, propagated)
