"""API keys: what they look like and what is kept of them."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass

SECRET_BYTES = 32
_PREFIX_CHARACTERS = 9


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

    @property
    def bucket_key(self) -> str:
        """Its key in the `keys` bucket: lower-case hex of the digest."""
        return self.digest.hex()


def key_text(secret: bytes) -> str:
    """The key as the customer sees it, once: "bb_" and 43 URL-safe characters for 32 bytes."""
    return "bb_" + base64.urlsafe_b64encode(secret).rstrip(b"=").decode()


def key_digest(hmac_secret: bytes, text: str) -> bytes:
    """HMAC-SHA256 of a key: finds it, and cannot be presented as one."""
    return hmac.new(hmac_secret, text.encode(), hashlib.sha256).digest()


def key_prefix(text: str) -> str:
    """First characters of a key, by which people recognise it; too few to help guessing."""
    return text[:_PREFIX_CHARACTERS]
