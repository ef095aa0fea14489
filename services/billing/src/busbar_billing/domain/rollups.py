"""Usage by minute, hour and day: what may be asked for at once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from busbar_errors import Rejected

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Bucket(StrEnum):
    """How long a bucket is; in UTC, so that a day begins at midnight there."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"

    @property
    def length(self) -> timedelta:
        """How long."""
        return _LENGTHS[self]

    @property
    def longest(self) -> timedelta:
        """The longest range that may be asked for at once."""
        return _LONGEST[self]


_LENGTHS = {
    Bucket.MINUTE: timedelta(minutes=1),
    Bucket.HOUR: timedelta(hours=1),
    Bucket.DAY: timedelta(days=1),
}
_LONGEST = {
    Bucket.MINUTE: timedelta(days=1),
    Bucket.HOUR: timedelta(days=31),
    Bucket.DAY: timedelta(days=366),
}


class GroupBy(StrEnum):
    """What the usage of a bucket is told apart by."""

    NOTHING = "nothing"
    KEY = "key"
    MODEL = "model"
    PROJECT = "project"


@dataclass(frozen=True, slots=True)
class Window:
    """Whole buckets that begin from `since` on and before `until`."""

    bucket: Bucket
    since: datetime
    until: datetime


def checked_window(
    bucket: Bucket, since: datetime | None, until: datetime | None, now: datetime
) -> Window:
    """The buckets that touch the range from `since` to `until`; without `until` up to now, without
    `since` as many as may be asked for. Raises Rejected for an empty or too long range."""
    end = _ceiling(until or now, bucket.length)
    start = end - bucket.longest if since is None else _floor(since, bucket.length)
    if since is not None and until is not None and since >= until:
        raise Rejected("since must be before until")
    if start >= end:
        raise Rejected("since is in the future: nothing was used there yet")
    if end - start > bucket.longest + bucket.length:
        raise Rejected(
            f"buckets of a {bucket} cover at most {bucket.longest.days} days at once: "
            "ask for a shorter range or for longer buckets"
        )
    return Window(bucket, start, end)


def _floor(moment: datetime, length: timedelta) -> datetime:
    return _EPOCH + (moment - _EPOCH) // length * length


def _ceiling(moment: datetime, length: timedelta) -> datetime:
    return _EPOCH - (_EPOCH - moment) // length * length
