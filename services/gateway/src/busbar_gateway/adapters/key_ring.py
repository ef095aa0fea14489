"""API keys in memory: looked up by HMAC, filled by watching the bucket that billing writes."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from busbar_contracts.billing.v1.keys_pb2 import KEY_SCOPE_SERVE, ApiKey
from busbar_messaging import topology
from busbar_messaging.bucket_changes import Change, Current, Deleted, Put
from busbar_messaging.watching import follow
from google.protobuf.message import DecodeError
from nats.aio.client import Client

from busbar_gateway.domain.failures import Forbidden, Unauthenticated
from busbar_gateway.domain.routes import Caller

log = structlog.get_logger()

_KEY_LENGTH_MAX = 256
_SCHEME = "bearer "
_RECENT_MAX = 4096
"""Headers whose key was found lately; the HMAC of a key costs more than looking it up."""


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller
    expires_unix_s: float
    """0 means never."""
    may_serve: bool


class KeyRing:
    """All keys that are valid now. Keeps serving from memory while the bus is away."""

    def __init__(self, secret: bytes, unix_s: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._unix_s = unix_s
        self._known: dict[bytes, _Known] = {}
        self._recent: dict[str, _Known] = {}
        self.read_once = False

    def authenticate(self, authorization: str | None) -> Caller:
        """Return whose key an `Authorization: Bearer` header holds; raise Unauthenticated, or
        Forbidden when it is not for calling deployments."""
        known = self._recent.get(authorization or "")
        if known is None:
            known = self._look_up(authorization)
        if known.expires_unix_s and self._unix_s() >= known.expires_unix_s:
            raise Unauthenticated("this API key has expired")
        if not known.may_serve:
            raise Forbidden("this API key may not call models: it lacks the scope serve")
        return known.caller

    def _look_up(self, authorization: str | None) -> _Known:
        if not authorization:
            raise Unauthenticated("no API key: send the header 'Authorization: Bearer <key>'")
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            raise Unauthenticated("the Authorization header must be 'Bearer <key>'")
        key = authorization[len(_SCHEME) :].strip(" \t")
        if not key or len(key) > _KEY_LENGTH_MAX:
            raise Unauthenticated("this is not an API key")
        digest = hmac.digest(self._secret, key.encode("utf-8", "surrogatepass"), "sha256")
        known = self._known.get(digest)
        if known is None:
            raise Unauthenticated("this API key is unknown or was revoked")
        if len(self._recent) >= _RECENT_MAX:
            self._recent.clear()
        self._recent[authorization] = known
        return known

    def apply(self, change: Change) -> None:
        """Take one change of the bucket."""
        self._recent.clear()
        if isinstance(change, Current):
            self.read_once = True
            return
        try:
            digest = bytes.fromhex(change.key)
        except ValueError:
            log.warning("key with a name that is no HMAC", name=change.key)
            return
        if isinstance(change, Deleted):
            self._known.pop(digest, None)
        else:
            self._put(digest, change)

    async def follow(self, client: Client) -> None:
        """Keep up with the bucket, for ever."""
        async for change in follow(client, topology.KEYS.name):
            self.apply(change)

    def _put(self, digest: bytes, put: Put) -> None:
        try:
            key = ApiKey.FromString(put.value)
        except DecodeError:
            log.warning("unreadable key", name=put.key)
            return
        caller = Caller(key.tenant_id, key.key_id, frozenset(key.deployments), key.project_id)
        may_serve = not key.scopes or KEY_SCOPE_SERVE in key.scopes
        self._known[digest] = _Known(caller, key.expires_unix_ms / 1000, may_serve)
