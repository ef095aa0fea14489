"""Warrants, as rows."""

from __future__ import annotations

from collections.abc import Mapping

from busbar_billing.adapters.postgres.database import Connection
from busbar_billing.domain.warrants import warrant

_ADD = "INSERT INTO warrants (subject, digest) SELECT * FROM unnest($1::text[], $2::bytea[])"
_SINCE = "coalesce((SELECT max(since) FROM warranted_since WHERE what = '{}'), '-infinity')"
SINCE = _SINCE.format("transfers")
"""When what has no warrant began to be a breach: the owner of the database may put it off."""
VOIDS_SINCE = _SINCE.format("voids")
"""The same for what gateways took back."""


PRICES_SINCE = _SINCE.format("prices")
"""The same for versions of the price book."""
DATED_SINCE = _SINCE.format("dates")
"""From when on the ids of transfers are compared with when they were posted."""


class Warrants:
    """Vouches for what is written."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    async def add(self, connection: Connection, says: Mapping[str, object]) -> None:
        """Vouch for these subjects and what they say, inside the caller's transaction."""
        if says:
            digests = [warrant(self._key, subject, said) for subject, said in says.items()]
            await connection.execute(_ADD, list(says), digests)
