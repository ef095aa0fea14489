"""What was audited from zero and is closed: seals that nobody makes without the secret."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

_PURPOSE = b"busbar audit seals"


class Part(StrEnum):
    """What is sealed, each in the order of its ids."""

    PRICES = "prices"
    JOURNAL = "journal"
    INBOX = "inbox"


@dataclass(frozen=True, slots=True)
class Content:
    """Rows of a part up to `upto`, as they stand."""

    part: Part
    upto: UUID
    rows: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Seal:
    """Of the rows after the seal before it and up to `upto`."""

    part: Part
    upto: UUID
    rows: int
    digest: bytes


def sealing_key(secret: str) -> bytes:
    """A key for seals only, from a secret that has other uses."""
    return hmac.digest(secret.encode(), _PURPOSE, hashlib.sha256)


def sealed(key: bytes, before: Seal | None, content: Content) -> Seal:
    """The seal of these rows, which stands for all that the seal before it does, too."""
    chained = before.digest if before else bytes(hashlib.sha256().digest_size)
    named = f"{content.part.value} {content.upto} {content.rows} ".encode()
    digest = hmac.digest(key, chained + named + content.digest, hashlib.sha256)
    return Seal(content.part, content.upto, content.rows, digest)
