"""The `keys` bucket, from which gateways learn of keys: kept equal to the database."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta

import structlog
from busbar_contracts.billing.v1.keys_pb2 import ApiKey as ApiKeyMessage
from busbar_errors import Unavailable
from busbar_messaging import topology
from busbar_messaging.watching import Current, Deleted, Put, follow
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError
from nats.js.kv import KeyValue

from busbar_billing.adapters import metrics
from busbar_billing.adapters.postgres.keys import Keys
from busbar_billing.domain.keys import ApiKey

log = structlog.get_logger()

RECONCILE_INTERVAL = timedelta(seconds=30)
_WRITE_TIMEOUT_S = 2.0
_RETRY_PAUSE_S = 0.5
_BUS_AWAY = (NatsError, JetStreamError, TimeoutError, OSError)


class KeyDirectoryBucket:
    """Writes the bucket at once on each change, and puts right what differs: at start, whenever the
    bucket was read anew (a reconnect, a restart, a re-creation), and every 30 s."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._mirror: dict[str, bytes] = {}
        self._complete = False
        self._wanted = asyncio.Event()
        # One writer at a time: what reconciliation read must not undo a revocation.
        self._writing = asyncio.Lock()

    async def publish(self, key: ApiKey) -> bool:
        """Tell the gateways of a key; False when the bus is away."""
        async with self._writing:
            return await self._attempt(key.bucket_key, encode_key(key))

    async def withdraw(self, key: ApiKey) -> bool:
        """Take a key from the gateways; False when the bus is away."""
        async with self._writing:
            return await self._attempt(key.bucket_key, None)

    async def run(self) -> None:
        """Keep the bucket equal to the database, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(), name="keys:watch")
            tasks.create_task(self._reconcile_when_wanted(), name="keys:reconcile")

    async def _watch(self) -> None:
        async for change in follow(self._client, topology.KEYS.name):
            match change:
                case Put(key, value, _):
                    self._mirror[key] = value
                case Deleted(key):
                    self._mirror.pop(key, None)
                case Current():
                    self._complete = True
                    self._wanted.set()

    async def _reconcile_when_wanted(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), RECONCILE_INTERVAL.total_seconds())
            self._wanted.clear()
            if not self._complete:
                continue
            try:
                async with self._writing:
                    await self._reconcile()
            except (*_BUS_AWAY, Unavailable) as error:
                log.warning("keys not reconciled", error=repr(error))
                await asyncio.sleep(_RETRY_PAUSE_S)
                self._wanted.set()

    async def _reconcile(self) -> None:
        mirror = dict(self._mirror)
        wanted = {key.bucket_key: encode_key(key) for key in await self._keys.active()}
        bucket = await self._bucket()
        for name in mirror.keys() - wanted.keys():
            await bucket.delete(name)
            self._mirror.pop(name, None)
            metrics.KEYS_RECONCILED.labels("deleted").inc()
        for name, value in wanted.items():
            if mirror.get(name) != value:
                await bucket.put(name, value)
                self._mirror[name] = value
                metrics.KEYS_RECONCILED.labels("put").inc()

    async def _attempt(self, name: str, value: bytes | None) -> bool:
        try:
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                bucket = await self._bucket()
                if value is None:
                    await bucket.delete(name)
                else:
                    await bucket.put(name, value)
        except _BUS_AWAY as error:
            log.warning("key not propagated yet", error=repr(error))
            self._wanted.set()
            return False
        return True

    async def _bucket(self) -> KeyValue:
        return await self._client.jetstream(timeout=_WRITE_TIMEOUT_S).key_value(topology.KEYS.name)


def encode_key(key: ApiKey) -> bytes:
    """The bucket's value for a key; the same key always gives the same bytes."""
    message = ApiKeyMessage(
        key_id=key.key_id,
        tenant_id=key.tenant_id,
        deployments=key.deployments,
        expires_unix_ms=key.expires_unix_ms or 0,
        name=key.name,
    )
    return message.SerializeToString(deterministic=True)
