"""Cursors: opaque to callers, the last id of a page to us."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, TypeVar
from uuid import UUID

from busbar_errors import Rejected
from fastapi import Query

from busbar_billing.adapters.http.schemas import Page

Row = TypeVar("Row")
Item = TypeVar("Item")

PAGE_DEFAULT, PAGE_MAX = 100, 1_000
Limit = Annotated[int, Query(ge=1, le=PAGE_MAX)]
Cursor = Annotated[str | None, Query(max_length=200)]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_REQUEST_ID_DIGITS = 32


def encode_cursor(last: str) -> str:
    """A cursor for what comes after `last`."""
    return base64.urlsafe_b64encode(last.encode()).rstrip(b"=").decode()


def decode_cursor(cursor: str | None, start: str) -> str:
    """The id that a cursor stands for, `start` without one; raise Rejected when it is not ours."""
    if cursor is None:
        return start
    try:
        padded = cursor.encode() + b"=" * (-len(cursor) % 4)
        decoded = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError) as error:
        raise Rejected("cursor is not one that this API gave") from error
    if not decoded.isprintable():
        raise Rejected("cursor is not one that this API gave")
    return decoded


def decode_id_cursor(cursor: str | None, start: UUID) -> UUID:
    """As decode_cursor, for lists ordered by a UUID."""
    try:
        return UUID(decode_cursor(cursor, str(start)))
    except ValueError as error:
        raise Rejected("cursor is not one that this API gave") from error


def page(
    rows: Sequence[Row], limit: int, key: Callable[[Row], str], show: Callable[[Row], Item]
) -> Page[Item]:
    """A page from up to `limit + 1` rows: the one too many only says that there is a next page."""
    shown = rows[:limit]
    more = encode_cursor(key(shown[-1])) if len(rows) > limit else None
    return Page(items=[show(row) for row in shown], next_cursor=more)


def read_request_id(text: str) -> UUID:
    """ "req_" and 32 hex digits, or a UUID in any usual form; raise Rejected otherwise."""
    digits = text.removeprefix("req_")
    try:
        return UUID(digits)
    except ValueError as error:
        raise Rejected(
            f"{text[:80]!r} is not a request id: req_ and {_REQUEST_ID_DIGITS} hex digits"
        ) from error


def first_id_of(moment: datetime) -> UUID:
    """The smallest UUIDv7 of a moment, to the millisecond (RFC 9562, section 5.7)."""
    unix_ms = int((moment - _EPOCH).total_seconds() * 1000)
    if not 0 <= unix_ms < 2**48:
        raise Rejected("since and until must be between 1970 and 10889")
    return UUID(int=unix_ms << 80)
