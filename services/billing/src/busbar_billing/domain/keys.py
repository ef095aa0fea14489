"""API keys: what they look like and what is kept of them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from busbar_errors import Conflict, Rejected

SECRET_BYTES = 32
PREFIX_CHARACTERS = 9
KEYS_PER_TENANT_MAX = 10_000
"""Keys that are not revoked."""
OVERLAP_MAX = timedelta(days=7)
"""For how long the old secret of a rotated key may be accepted."""

_TEXT = re.compile(r"bb_[A-Za-z0-9_-]{43}")
_DAY_MS = 86_400_000


class NotAllowed(Rejected):
    """Whoever asks may do such things, but not this one."""


class Scope(StrEnum):
    """What a key may be used for."""

    SERVE = "serve"
    READ_USAGE = "read_usage"
    ADMINISTER = "administer"


@dataclass(frozen=True, slots=True)
class PreviousSecret:
    """What a key's secret was before it was rotated."""

    digest: bytes
    prefix: str
    until_unix_ms: int
    """Accepted until then."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is kept of a key. `deployments` empty: every one open to the tenant."""

    key_id: str
    tenant_id: str
    name: str
    digest: bytes
    prefix: str
    deployments: tuple[str, ...]
    expires_unix_ms: int | None
    scopes: tuple[Scope, ...] = (Scope.SERVE,)
    project_id: str | None = None
    """None: the tenant's default project."""
    previous: PreviousSecret | None = None

    @property
    def digests(self) -> list[bytes]:
        """Of its secret, and of the one before."""
        return [self.digest] + ([self.previous.digest] if self.previous else [])

    def secrets_at(self, unix_ms: int) -> dict[bytes, int | None]:
        """Digests accepted then, each with the Unix time in ms until which it is; None: always."""
        if self.expires_unix_ms is not None and self.expires_unix_ms <= unix_ms:
            return {}
        accepted = {self.digest: self.expires_unix_ms}
        if self.previous is not None and self.previous.until_unix_ms > unix_ms:
            until = self.previous.until_unix_ms
            accepted[self.previous.digest] = min(until, self.expires_unix_ms or until)
        return accepted


def is_key_text(text: str) -> bool:
    """Whether a key of ours could look like this."""
    return _TEXT.fullmatch(text) is not None


def checked_scopes(scopes: list[Scope]) -> tuple[Scope, ...]:
    """Scopes in their order and without repeats; raise Rejected when there are none."""
    if not scopes:
        raise Rejected("a key without scopes could do nothing: give it one at least")
    return tuple(scope for scope in Scope if scope in scopes)


def check_may_give(held: Collection[str], given: Collection[str]) -> None:
    """Raise NotAllowed when a key limited to deployments `held` would give away access to others.

    Empty is every deployment, on both sides. Scopes need no such rule: only `administer` gives
    keys, and it comprises the others.
    """
    if not held:
        return
    if not given:
        raise NotAllowed(
            "your key is limited to some deployments, and this one would not be: name deployments"
            " out of your key's"
        )
    beyond = sorted(set(given).difference(held))
    if beyond:
        raise NotAllowed(
            f"your key may not be used for {beyond[0]!r}, so it cannot give access to it"
        )


def check_may_end(held: Collection[str], key: ApiKey) -> None:
    """Raise NotAllowed when a key limited to deployments `held` would end one that may use others:
    who looks after one model's keys does not cut off the rest of the tenant."""
    beyond = sorted(set(key.deployments).difference(held))
    if held and (beyond or not key.deployments):
        raise NotAllowed(
            f"your key is limited to some deployments, and key {key.key_id} may be used for "
            f"{repr(beyond[0]) if beyond else 'all of them'}: revoke it with one that may, too"
        )


def checked_overlap(until_unix_ms: int | None, now_unix_ms: int) -> int:
    """Until when the old secret is accepted, None: no longer. Raise Rejected beyond OVERLAP_MAX."""
    if until_unix_ms is None:
        return now_unix_ms
    if until_unix_ms < now_unix_ms:
        raise Rejected("old_valid_until has passed already: leave it out to end the old secret now")
    if until_unix_ms - now_unix_ms > OVERLAP_MAX.days * _DAY_MS:
        raise Rejected(f"the old secret may be accepted for at most {OVERLAP_MAX.days} days more")
    return until_unix_ms


def check_keeps_promise(key: ApiKey, old_until_unix_ms: int, now_unix_ms: int) -> None:
    """Raise Conflict when a rotation with an overlap would end an earlier overlap before its time:
    a key has two secrets at most. One without an overlap ends all old secrets, as it says."""
    previous = key.previous
    if previous is None or not now_unix_ms < min(previous.until_unix_ms, old_until_unix_ms):
        return
    until = datetime.fromtimestamp(previous.until_unix_ms // 1000, UTC)
    raise Conflict(
        f"the secret that key {key.key_id} had before, {previous.prefix}..., is accepted until "
        f"{until:%Y-%m-%dT%H:%M:%SZ}: rotate after that, or leave old_valid_until out to end "
        "every old secret now"
    )


def key_text(secret: bytes) -> str:
    """The key as the customer sees it, once: "bb_" and 43 URL-safe characters for 32 bytes."""
    return "bb_" + base64.urlsafe_b64encode(secret).rstrip(b"=").decode()


def key_digest(hmac_secret: bytes, text: str) -> bytes:
    """HMAC-SHA256 of a key: finds it, and cannot be presented as one."""
    return hmac.new(hmac_secret, text.encode(), hashlib.sha256).digest()


def key_prefix(text: str) -> str:
    """First characters of a key, by which people recognise it; too few to help guessing."""
    return text[:PREFIX_CHARACTERS]
