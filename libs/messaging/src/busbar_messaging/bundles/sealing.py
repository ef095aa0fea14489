"""Whose word is taken for a bundle: Ed25519 seals over its digest.

A publisher vouches for a bundle of data; only an approver's seal lets one bring code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from busbar_contracts.scheduler.v1.bundle_pb2 import BundleSeal, SealedBundle
from busbar_errors import Rejected
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from busbar_messaging.bundles.contents import digest_of

SEALS_MAX = 16
_KEY_BYTES = 32
_PURPOSE = b"busbar bundle seal v1\0"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, of a publisher or an approver."""

    private: Ed25519PrivateKey

    @classmethod
    def make(cls) -> SigningKey:
        """A new one."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> SigningKey:
        """Read what `pem` wrote, or openssl genpkey -algorithm ed25519; raises Rejected."""
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise Rejected(f"not a private key in PEM without a password: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise Rejected("not an Ed25519 key")
        return cls(key)

    def pem(self) -> bytes:
        """The key as a file: PKCS #8, without a password."""
        return self.private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    @property
    def public(self) -> str:
        """The public key, 64 hex digits, as settings name it."""
        return self.private.public_key().public_bytes_raw().hex()

    def seal(self, contents: bytes, *, approves_code: bool) -> BundleSeal:
        """Vouch for a bundle with these serialized contents."""
        return BundleSeal(
            public_key=bytes.fromhex(self.public),
            signature=self.private.sign(_statement(contents, approves_code=approves_code)),
            approves_code=approves_code,
        )


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """Public keys whose seals count."""

    publishers: frozenset[bytes]
    approvers: frozenset[bytes]
    """Are publishers, too."""

    @classmethod
    def of(cls, publishers: Iterable[str], approvers: Iterable[str]) -> TrustedKeys:
        """From hex digits; raises ValueError for what is no key."""
        return cls(frozenset(map(_public_key, publishers)), frozenset(map(_public_key, approvers)))

    def opened(self, sealed: SealedBundle, digest: str) -> bool:
        """Whether code is approved in the bundle of that digest.

        Raises Rejected when it is another bundle, or nobody trusted vouches for it.
        """
        if (actual := digest_of(sealed.contents)) != digest:
            raise Rejected(f"what was stored as {digest} has another digest: {actual}")
        if len(sealed.seals) > SEALS_MAX:
            raise Rejected(f"{digest} has more than {SEALS_MAX} seals")
        good = [seal for seal in sealed.seals if self._counts(seal, sealed.contents)]
        if not good:
            raise Rejected(f"{digest}: {self._why_none_counts(sealed.seals)}")
        return any(seal.approves_code for seal in good)

    def _counts(self, seal: BundleSeal, contents: bytes) -> bool:
        trusted = self.approvers if seal.approves_code else self.publishers | self.approvers
        if seal.public_key not in trusted:
            return False
        statement = _statement(contents, approves_code=seal.approves_code)
        try:
            Ed25519PublicKey.from_public_bytes(seal.public_key).verify(seal.signature, statement)
        except (InvalidSignature, ValueError):
            return False
        return True

    def _why_none_counts(self, seals: Iterable[BundleSeal]) -> str:
        known = self.publishers | self.approvers
        if not known:
            return "no key is trusted here; set BUSBAR_BUNDLE_APPROVERS or _PUBLISHERS"
        by_whom = [seal.public_key.hex()[:16] for seal in seals if seal.public_key not in known]
        if by_whom:
            return f"sealed by {', '.join(by_whom)}…, which is no key that is trusted here"
        for seal in seals:
            if seal.approves_code and seal.public_key not in self.approvers:
                return f"{seal.public_key.hex()[:16]}… may publish bundles but not approve code"
        return "its seal is broken" if seals else "nobody sealed it"


def _statement(contents: bytes, *, approves_code: bool) -> bytes:
    return _PURPOSE + bytes([approves_code]) + hashlib.sha256(contents).digest()


def _public_key(text: str) -> bytes:
    key = bytes.fromhex(text)
    if len(key) != _KEY_BYTES:
        raise ValueError(f"{text!r} is not a public key: 64 hex digits")
    return key
