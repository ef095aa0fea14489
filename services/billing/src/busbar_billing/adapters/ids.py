"""Ids as asyncpg's own class: a uuid.UUID whose making, bytes and text cost a fifth to a twentieth.

A posted record has three of them, written seven times.
"""

from __future__ import annotations

import uuid_utils
from asyncpg.pgproto.pgproto import UUID

UUID_BYTES = 16


def new_id() -> UUID:
    """A UUIDv7: later ones are greater."""
    return UUID(uuid_utils.uuid7().bytes)


def read_id(raw: bytes) -> UUID | None:
    """The id in these bytes; None when there are not 16."""
    return UUID(raw) if len(raw) == UUID_BYTES else None
