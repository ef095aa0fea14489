"""One answer for one Idempotency-Key: what to do with a request, given what is known of its key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from busbar_gateway.domain.failures import InvalidInput

KEY_CHARS_MAX = 255


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer as it left; `body` is None where it was too large to keep."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a key. `answer` is None while somebody serves the request."""

    fingerprint: bytes
    gateway_id: str
    run_id: str
    request_id: bytes
    deadline_unix_s: float
    answer: KeptAnswer | None = None


class Step(Enum):
    """What to do with a request that carries a key."""

    SERVE = auto()
    """Nobody has it: claim the key, then serve."""
    TAKE_OVER = auto()
    """Whoever had it is gone and charged nothing: claim the key in its place, then serve."""
    REPLAY = auto()
    """It was answered: give that answer."""
    GONE = auto()
    """It was answered, with more than is kept."""
    WAIT = auto()
    """Somebody serves it now."""
    CONFLICT = auto()
    """The key was used for another request."""


def next_step(
    entry: Entry | None, fingerprint: bytes, now_unix_s: float, is_gone: Callable[[str, str], bool]
) -> Step:
    """Decide; `is_gone(gateway_id, run_id)` says whether that start of a gateway surely ended."""
    if entry is None:
        return Step.SERVE
    if entry.fingerprint != fingerprint:
        return Step.CONFLICT
    if entry.answer is not None:
        return Step.GONE if entry.answer.body is None else Step.REPLAY
    if now_unix_s > entry.deadline_unix_s or is_gone(entry.gateway_id, entry.run_id):
        return Step.TAKE_OVER
    return Step.WAIT


def checked_key(value: bytes) -> bytes:
    """Return what may be an Idempotency-Key; raise InvalidInput otherwise."""
    printable = all(0x21 <= byte <= 0x7E for byte in value)  # noqa: PLR2004
    if not value or len(value) > KEY_CHARS_MAX or not printable:
        raise InvalidInput(
            f"Idempotency-Key must be 1 to {KEY_CHARS_MAX} printable ASCII characters"
            " without spaces"
        )
    return value


def entry_name(tenant_id: str, path: str, key: bytes) -> str:
    """Where a key is looked up: its tenant and its route are part of it."""
    return hashlib.sha256(b"\0".join((tenant_id.encode(), path.encode(), key))).hexdigest()


def fingerprint_of(headers: tuple[bytes, ...], body: bytes) -> bytes:
    """What makes two requests the same: the body, and the headers that say how to read it."""
    digest = hashlib.sha256()
    for part in (*headers, body):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()
