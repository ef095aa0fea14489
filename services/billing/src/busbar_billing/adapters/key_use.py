"""When each key was last used: noticed as usage is posted and as customers ask for their account,
to the minute, written in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import structlog
from busbar_errors import Unavailable

from busbar_billing.adapters.postgres.keys import Keys
from busbar_billing.usecases.post_usage import RatedRecord

log = structlog.get_logger()

WRITE_INTERVAL = timedelta(seconds=10)
_KEYS_REMEMBERED_MAX = 100_000
_NS_PER_MINUTE = 60 * 10**9


class KeyUse:
    """Writes a key's minute at most once; what is not written yet when the process dies is lost."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._written: dict[str, int] = {}
        self._unwritten: dict[str, int] = {}

    def usage_posted(self, charged: Sequence[RatedRecord]) -> None:
        """These records were charged."""
        for one in charged:
            self.used(one.record.key_id, one.record.finished_unix_ns)

    def used(self, key_id: str, unix_ns: int) -> None:
        """A key was used; only noticed here, so that nobody waits for the database."""
        minute = unix_ns // _NS_PER_MINUTE
        if minute > self._written.get(key_id, 0) and minute > self._unwritten.get(key_id, 0):
            self._unwritten[key_id] = minute

    async def run(self) -> None:
        """Write what was noticed, for ever."""
        while True:
            await asyncio.sleep(WRITE_INTERVAL.total_seconds())
            try:
                await self.write()
            except Unavailable as error:
                log.warning("key use not written yet", reason=error.reason)

    async def write(self) -> None:
        """Write what was noticed; raises Unavailable, and then nothing is forgotten."""
        if not (noticed := dict(self._unwritten)):
            return
        await self._keys.note_use({key: _minute(minute) for key, minute in noticed.items()})
        for key_id, minute in noticed.items():
            if self._unwritten.get(key_id) == minute:
                del self._unwritten[key_id]
        if len(self._written) > _KEYS_REMEMBERED_MAX:
            self._written.clear()
        self._written.update(noticed)


def _minute(number: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
