"""What was usually asked, kept in a bucket so that no restart forgets it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import structlog
from busbar_contracts.scheduler.v1.demand_pb2 import DemandHistory, DemandSeason
from busbar_errors import Rejected, Unavailable
from busbar_messaging import topology
from busbar_messaging.bucket_changes import Put
from busbar_messaging.dispositions import decode
from busbar_messaging.watching import follow
from nats.aio.client import Client

from busbar_scheduler.adapters.buckets import Buckets
from busbar_scheduler.domain.autoscaling import Autoscaler, Remembered
from busbar_scheduler.domain.forecasting import History, Season

log = structlog.get_logger()

_EVERY_S = 900.0
_APART_S = 0.01
"""Between two entries, so that a thousand of them hold nothing else up."""


class DemandMemory:
    """Reads what every scheduler noted; the leader notes."""

    def __init__(
        self, client: Client, buckets: Buckets, autoscaler: Autoscaler, leads: Callable[[], bool]
    ) -> None:
        self._client = client
        self._buckets = buckets
        self._autoscaler = autoscaler
        self._leads = leads

    async def follow(self) -> None:
        """Take over what others noted, for ever."""
        async for change in follow(self._client, topology.DEMAND.name):
            if isinstance(change, Put):
                self._take(change)

    async def run(self) -> None:
        """Note it every quarter of an hour, for ever."""
        while True:
            await asyncio.sleep(_EVERY_S)
            if self._leads():
                await self.note()

    async def note(self) -> None:
        """Note what is known now; what cannot be written is written the next time."""
        for name, known in self._autoscaler.worth_remembering().items():
            value = history_message(name, known).SerializeToString()
            try:
                await self._buckets.put(topology.DEMAND.name, name, value)
            except Unavailable as error:
                log.warning("demand not noted", reason=error.reason)
                return
            await asyncio.sleep(_APART_S)

    def _take(self, put: Put) -> None:
        try:
            known = history_of(decode(DemandHistory, put.value))
        except Rejected as error:
            log.warning("entry not understood", bucket="demand", key=put.key, error=error.reason)
            return
        self._autoscaler.recall(put.key, known)


def history_message(deployment: str, known: Remembered) -> DemandHistory:
    """What is known as the bus carries it."""
    return DemandHistory(
        deployment=deployment,
        seasons=[
            DemandSeason(
                period_min=one.period_min,
                loads=one.values.tolist(),
                seen=one.seen.tobytes(),
                error=one.error,
                judged_min=one.judged_min,
                level_expected=one.level_expected,
                level_seen=one.level_seen,
            )
            for one in known.history.seasons
        ],
        unchanged_error=known.history.unchanged_error,
        unchanged_judged_min=known.history.unchanged_judged_min,
        loading_ms=round((known.loading_s or 0.0) * 1_000),
    )


def history_of(message: DemandHistory) -> Remembered:
    """What a message says; raises Rejected when a season has not as many values as it should."""
    history = History()
    stored = {one.period_min: one for one in message.seasons}
    for season in history.seasons:
        if season.period_min in stored:
            _restore(season, stored[season.period_min])
    history.unchanged_error = message.unchanged_error
    history.unchanged_judged_min = message.unchanged_judged_min
    return Remembered(history, message.loading_ms / 1_000 if message.loading_ms else None)


def _restore(season: Season, stored: DemandSeason) -> None:
    if not len(stored.loads) == len(stored.seen) == len(season.values):
        raise Rejected(
            f"{len(stored.loads)} loads and {len(stored.seen)} counts in {season.period_min} min"
        )
    season.values = np.array(stored.loads, dtype=np.float32)
    season.seen = np.frombuffer(stored.seen, dtype=np.uint8).copy()
    season.error, season.judged_min = stored.error, stored.judged_min
    season.level_expected, season.level_seen = stored.level_expected, stored.level_seen
