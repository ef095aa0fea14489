"""Who does what only one instance of the service does."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum

from busbar_billing.adapters.postgres.database import Connections

_TAKE = """
    UPDATE duties SET holder = $2, held_until = clock_timestamp() + $3::interval
    WHERE duty = $1 AND (holder = $2 OR held_until < clock_timestamp())
"""
_GIVE_UP = "UPDATE duties SET held_until = '-infinity' WHERE duty = $1 AND holder = $2"


class Duty(StrEnum):
    """What is done by one instance at a time."""

    AUDIT = "audit"
    CLOSE_MONTHS = "close_months"


class Duties:
    """Leases on duties, by the database's clock."""

    def __init__(self, database: Connections) -> None:
        self._database = database

    async def take(self, duty: Duty, holder: str, lasts: timedelta) -> bool:
        """Whether the duty is `holder`'s, for so long from now."""
        async with self._database.connection() as connection:
            return await connection.execute(_TAKE, duty.value, holder, lasts) == "UPDATE 1"

    async def give_up(self, duty: Duty, holder: str) -> None:
        """Let another have it at once; nothing when it is another's."""
        async with self._database.connection() as connection:
            await connection.execute(_GIVE_UP, duty.value, holder)
