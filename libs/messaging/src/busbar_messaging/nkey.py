"""NATS's Ed25519 keys and credentials files, as text.

Their form is that of https://github.com/nats-io/nkeys: base32 of a prefix, the key and a CRC-16.
The package of that name on PyPI comes as source only, which the images refuse.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_SEED_PREFIX = 18 << 3  # "S"
_KEY_BYTES = 32
_CREDENTIALS = """\
-----BEGIN NATS USER JWT-----
{jwt}
------END NATS USER JWT------

-----BEGIN USER NKEY SEED-----
{seed}
------END USER NKEY SEED------
"""
_BLOCK = re.compile(r"-+BEGIN ([A-Z ]+)-+\s+(\S+)\s+-+END \1-+")


class Kind(IntEnum):
    """Whose key it is: the prefix byte, whose first five bits are its first letter."""

    OPERATOR = 14 << 3
    ACCOUNT = 0
    USER = 20 << 3


@dataclass(frozen=True, slots=True)
class NKey:
    """A private key. Its seed is a secret; `public` is its name."""

    kind: Kind
    seed: str = field(repr=False)
    public: str
    _private: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def of(cls, kind: Kind, secret: bytes) -> Self:
        """The key made from 32 secret random bytes."""
        # Imported here: who has a password need not have this in memory.
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415

        private = ed25519.Ed25519PrivateKey.from_private_bytes(secret)
        head = bytes([_SEED_PREFIX | kind >> 5, (kind & 31) << 3])
        public = _checked(bytes([kind]) + private.public_key().public_bytes_raw())
        return cls(kind, _checked(head + secret), public, private)

    @classmethod
    def read(cls, seed: str) -> Self:
        """The key that has this seed; raises ValueError when that is no seed."""
        try:
            raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
        except ValueError as error:
            raise ValueError("not the seed of a key") from error
        head, secret = raw[:2], raw[2:-2]
        if len(secret) != _KEY_BYTES or _checked(head + secret) != seed or head[0] >> 3 != 18:  # noqa: PLR2004
            raise ValueError("not the seed of a key")
        return cls.of(Kind((head[0] & 7) << 5 | head[1] >> 3), secret)

    def sign(self, data: bytes) -> bytes:
        """The Ed25519 signature of `data`."""
        return self._private.sign(data)


def is_credentials(secret: str) -> bool:
    """Whether this is the text of a credentials file rather than a password."""
    return secret.lstrip().startswith("-----BEGIN NATS USER JWT-----")


def write_credentials(jwt: str, key: NKey) -> str:
    """The text of a credentials file."""
    return _CREDENTIALS.format(jwt=jwt, seed=key.seed)


def read_credentials(text: str) -> tuple[str, NKey]:
    """A user's JWT and key; raises ValueError when they are not both there."""
    blocks = dict(_BLOCK.findall(text))
    if not {"NATS USER JWT", "USER NKEY SEED"} <= set(blocks):
        raise ValueError("credentials need a NATS USER JWT and a USER NKEY SEED")
    return blocks["NATS USER JWT"], NKey.read(blocks["USER NKEY SEED"])


def _checked(data: bytes) -> str:
    check = binascii.crc_hqx(data, 0).to_bytes(2, "little")
    return base64.b32encode(data + check).rstrip(b"=").decode()
