"""Create, rotate and revoke API keys: in the database first, then at every gateway."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from busbar_errors import Rejected

from busbar_billing.domain.keys import (
    ApiKey,
    Scope,
    check_may_end,
    check_may_give,
    checked_overlap,
    checked_scopes,
    key_digest,
    key_prefix,
    key_text,
)
from busbar_billing.domain.names import checked_deployments, checked_name


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as the database holds it."""

    key: ApiKey
    created_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None = None
    """To the minute, from usage as it is posted."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a key. `propagated`: gateways have been told; if not they are within seconds of
    the bus being back."""

    stored: StoredKey
    propagated: bool


@dataclass(frozen=True, slots=True)
class NewSecret:
    """What a rotation writes."""

    digest: bytes
    prefix: str
    old_until_unix_ms: int


class KeyStore(Protocol):
    """Where keys are kept. `tenant_id` given: keys of others are not there."""

    async def get(self, key_id: str, tenant_id: str | None) -> StoredKey:
        """Return one; raise NotFound."""
        ...

    async def add(self, key: ApiKey) -> StoredKey:
        """Add one; raise NotFound when there is no such tenant or project, Rejected when the tenant
        has as many as it may have."""
        ...

    async def rotate(
        self, key_id: str, secret: NewSecret, tenant_id: str | None
    ) -> tuple[StoredKey, list[bytes]]:
        """Give a key a new secret; returns digests that are accepted no more, too. Raise NotFound,
        or Conflict when the key is revoked or expired, or an earlier overlap would be cut short."""
        ...

    async def revoke(self, key_id: str, tenant_id: str | None) -> StoredKey:
        """Revoke, or return it as it is when it is revoked already; raise NotFound."""
        ...


class KeyDirectory(Protocol):
    """What the gateways watch."""

    async def refresh(self, tenant_id: str, digests: Collection[bytes]) -> bool:
        """Tell the gateways what the database says of these; False when the bus is away."""
        ...


class KeyEvents(Protocol):
    """What the others are told."""

    def key_created(self, key: ApiKey) -> None:
        """A key was created."""
        ...

    def key_rotated(self, key: ApiKey) -> None:
        """A key was given a new secret."""
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
    scopes: list[Scope] = field(default_factory=lambda: [Scope.SERVE])
    project_id: str | None = None
    asked_with: Collection[str] = ()
    """Deployments that the key of whoever asks is limited to; empty: it is not."""


@dataclass(frozen=True, slots=True)
class KeyDesk:
    """What working on keys needs."""

    store: KeyStore
    directory: KeyDirectory
    events: KeyEvents
    hmac_secret: bytes


async def create_key(
    desk: KeyDesk, wanted: NewKey, *, key_id: str, secret: bytes, now_unix_ms: int
) -> tuple[str, Change]:
    """Create a key from 32 random bytes; returns its text, which is shown once and kept nowhere."""
    if wanted.expires_unix_ms is not None and wanted.expires_unix_ms <= now_unix_ms:
        raise Rejected("expires_at has passed already: give a time to come, or leave it out")
    deployments = checked_deployments(wanted.deployments)
    check_may_give(wanted.asked_with, deployments)
    text = key_text(secret)
    key = ApiKey(
        key_id=key_id,
        tenant_id=wanted.tenant_id,
        name=checked_name(wanted.name),
        digest=key_digest(desk.hmac_secret, text),
        prefix=key_prefix(text),
        deployments=tuple(deployments),
        expires_unix_ms=wanted.expires_unix_ms,
        scopes=checked_scopes(wanted.scopes),
        project_id=wanted.project_id,
    )
    stored = await desk.store.add(key)
    propagated = await desk.directory.refresh(key.tenant_id, key.digests)
    desk.events.key_created(key)
    return text, Change(stored, propagated)


async def rotate_key(
    desk: KeyDesk,
    key_id: str,
    *,
    tenant_id: str | None,
    secret: bytes,
    old_until_unix_ms: int | None,
    now_unix_ms: int,
    asked_with: Collection[str] = (),
) -> tuple[str, Change]:
    """Give a key a new secret; the one it has is accepted until then. While one from before is
    accepted still, only a rotation that ends both at once is carried out.

    `asked_with` as in NewKey: who may not use all that the key may does not get its secret.
    """
    if asked_with:  # no key's deployments ever change
        check_may_give(asked_with, (await desk.store.get(key_id, tenant_id)).key.deployments)
    text = key_text(secret)
    until = checked_overlap(old_until_unix_ms, now_unix_ms)
    new = NewSecret(key_digest(desk.hmac_secret, text), key_prefix(text), until)
    stored, dropped = await desk.store.rotate(key_id, new, tenant_id)
    digests = [*stored.key.digests, *dropped]
    propagated = await desk.directory.refresh(stored.key.tenant_id, digests)
    desk.events.key_rotated(stored.key)
    return text, Change(stored, propagated)


async def revoke_key(
    desk: KeyDesk, key_id: str, *, tenant_id: str | None, asked_with: Collection[str] = ()
) -> Change:
    """Revoke a key: durable when this returns, effective at the gateways when `propagated`.

    `asked_with` as in NewKey: who may not use all that the key may does not end it.
    """
    if asked_with:  # no key's deployments ever change
        check_may_end(asked_with, (await desk.store.get(key_id, tenant_id)).key)
    stored = await desk.store.revoke(key_id, tenant_id)
    propagated = await desk.directory.refresh(stored.key.tenant_id, stored.key.digests)
    desk.events.key_revoked(stored.key)
    return Change(stored, propagated)
