"""The name of a request: a UUIDv7, which customers see as req_ and 32 hexadecimal digits."""

from __future__ import annotations

import uuid_utils


def new_request_id() -> bytes:
    """A UUIDv7, 16 bytes."""
    return uuid_utils.uuid7().bytes


def public_id(request_id: bytes) -> str:
    """The request id as customers see it."""
    return f"req_{request_id.hex()}"
