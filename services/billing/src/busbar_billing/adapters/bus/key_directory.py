"""The `keys` bucket, from which gateways learn of keys."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping

from busbar_contracts.billing.v1.keys_pb2 import (
    KEY_SCOPE_ADMINISTER,
    KEY_SCOPE_READ_USAGE,
    KEY_SCOPE_SERVE,
    KeyScope,
)
from busbar_contracts.billing.v1.keys_pb2 import ApiKey as ApiKeyMessage
from busbar_messaging import topology
from nats.aio.client import Client

from busbar_billing.adapters.bus.mirrored_bucket import MirroredBucket
from busbar_billing.adapters.bus.policy_directory import PolicyDirectory
from busbar_billing.adapters.postgres.keys import Keys
from busbar_billing.domain.keys import ApiKey, Scope

_SCOPES: dict[Scope, KeyScope.ValueType] = {
    Scope.SERVE: KEY_SCOPE_SERVE,
    Scope.READ_USAGE: KEY_SCOPE_READ_USAGE,
    Scope.ADMINISTER: KEY_SCOPE_ADMINISTER,
}


class KeyDirectory:
    """Tells the gateways of keys, and of a tenant's policy before its first key."""

    def __init__(
        self, client: Client, keys: Keys, policies: PolicyDirectory, wanted: asyncio.Event
    ) -> None:
        self.bucket = MirroredBucket(client, topology.KEYS.name, _UsableKeys(keys), wanted)
        self._policies = policies

    async def refresh(self, tenant_id: str, digests: Collection[bytes]) -> bool:
        """Tell the gateways what the database says of these; False when the bus is away."""
        if not await self._policies.ensure(tenant_id):
            return False
        return await self.bucket.refresh([digest.hex() for digest in digests])


class _UsableKeys:
    """The keys that a gateway may accept now, by the hex of their digests."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def entries(self, names: Collection[str]) -> Mapping[str, bytes]:
        found = await self._keys.by_digests(_digests(names))
        entries = encode_keys(found)
        return {name: entries[name] for name in names if name in entries}

    async def pages(self) -> AsyncIterator[Mapping[str, bytes]]:
        async for keys in self._keys.all_usable():
            yield encode_keys(keys)


def encode_keys(keys: Collection[ApiKey]) -> dict[str, bytes]:
    """The bucket's entries for these keys; the same key always gives the same bytes."""
    now_ms = time.time_ns() // 1_000_000
    return {
        digest.hex(): _encode(key, until_ms)
        for key in keys
        for digest, until_ms in key.secrets_at(now_ms).items()
    }


def _encode(key: ApiKey, until_unix_ms: int | None) -> bytes:
    message = ApiKeyMessage(
        key_id=key.key_id,
        tenant_id=key.tenant_id,
        deployments=key.deployments,
        expires_unix_ms=until_unix_ms or 0,
        name=key.name,
        project_id=key.project_id or "",
        scopes=[_SCOPES[scope] for scope in key.scopes],
    )
    return message.SerializeToString(deterministic=True)


def _digests(names: Collection[str]) -> list[bytes]:
    """What can be read; a name that is no digest is in the bucket by mistake."""
    digests: list[bytes] = []
    for name in names:
        try:
            digests.append(bytes.fromhex(name))
        except ValueError:
            continue
    return digests
