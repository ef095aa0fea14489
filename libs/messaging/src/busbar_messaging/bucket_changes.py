"""What a bucket's messages say about its keys, and when all of it was read.

Decisions alone: `watching` hears the messages. A copy of a bucket may lag behind, see
docs/decisions/0077.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime

from nats.aio.msg import Msg

LAG_MAX_S = 6.0
"""How long a copy is given to catch up before another one is tried."""
_OPERATION = "KV-Operation"
_MARKER = "Nats-Marker-Reason"
"""Left by the server in place of an entry that it removed."""


@dataclass(frozen=True, slots=True)
class Put:
    """`key` now has `value`, written as `revision`."""

    key: str
    value: bytes
    revision: int
    stored_unix_ns: int = field(default=0, compare=False)
    """When the server stored it, by its clock; 0 where that is not known."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """`key` is gone: deleted, purged, or missing after the bucket was re-read."""

    key: str


@dataclass(frozen=True, slots=True)
class Current:
    """Everything that was in the bucket when the watch began has been reported.

    Of a watch of some keys only: everything that the server had of them that was asked.
    """


Change = Put | Deleted | Current


@dataclass(frozen=True, slots=True)
class Entry:
    """One message of a bucket."""

    key: str
    value: bytes | None
    """None where the key was deleted."""
    sequence: int
    stored_at: datetime

    @classmethod
    def of(cls, message: Msg, bucket: str) -> Entry:
        """Read it from the server's message."""
        headers, metadata = message.headers or {}, message.metadata
        gone = headers.get(_OPERATION) in {"DEL", "PURGE"} or _MARKER in headers
        return cls(
            message.subject.removeprefix(f"$KV.{bucket}."),
            None if gone else message.data,
            metadata.sequence.stream,
            metadata.timestamp,
        )


class Heard:
    """What was reported of a bucket, by one watch after another."""

    def __init__(self) -> None:
        self._revisions: dict[str, int] = {}
        self._newest: tuple[int, datetime] | None = None

    @property
    def newest(self) -> int:
        """Sequence of the last message that was heard; 0 when there was none."""
        return self._newest[0] if self._newest else 0

    def begin_anew(self) -> None:
        """The bucket was made anew or put back from a snapshot: it lacks what was heard last."""
        self._newest = None

    def change(self, entry: Entry) -> Change | None:
        """What it says, or None when it is older than what was heard before, and so is not so any
        more: a copy that lags says that."""
        if self._is_old(entry):
            return None
        if self._newest is None or (
            entry.sequence > self._newest[0] or entry.stored_at > self._newest[1]
        ):
            self._newest = entry.sequence, entry.stored_at
        if entry.value is None:
            self._revisions.pop(entry.key, None)
            return Deleted(entry.key)
        self._revisions[entry.key] = entry.sequence
        return Put(entry.key, entry.value, entry.sequence, unix_ns_of(entry.stored_at))

    def _is_old(self, entry: Entry) -> bool:
        """What a bucket that was made anew says has a lower sequence, and was stored later."""
        if self._newest is None or self._revisions.get(entry.key) == entry.sequence:
            return False
        sequence, stored_at = self._newest
        return entry.sequence <= sequence and entry.stored_at <= stored_at

    def missing(self, here: AbstractSet[str]) -> list[str]:
        """Keys that are not here any more; they are forgotten."""
        gone = sorted(self._revisions.keys() - here)
        for key in gone:
            del self._revisions[key]
        return gone


@dataclass(frozen=True, slots=True)
class Extent:
    """How far a bucket reaches, as the server says that leads it."""

    newest: int
    """Sequence of the last message that was written."""
    entries: int
    expires: bool
    """Whether entries, and so the last one too, vanish by themselves."""


class Reading:
    """The first part of a watch: all that is there. Without an extent nobody knows how much."""

    def __init__(self, extent: Extent | None, now: float) -> None:
        self.keys = set[str]()
        self.newest = 0
        self.over = False
        self._extent = extent
        self._late_at = now + LAG_MAX_S

    def take(self, entry: Entry) -> None:
        """One message, in their order."""
        if not self.over:
            self.keys.add(entry.key)
            self.newest = entry.sequence

    def is_late(self, now: float) -> bool:
        """Whether a copy would have caught up by now."""
        return now > self._late_at

    def is_whole(self, now: float) -> bool:
        """Whether that is all of it.

        As many entries are no proof: some may be old ones. It suffices where the last message may
        have vanished: where entries expire, or after so long that it must have been removed.
        """
        extent = self._extent
        if extent is None or self.newest >= extent.newest:
            return True
        return len(self.keys) >= extent.entries and (extent.expires or self.is_late(now))


def unix_ns_of(moment: datetime) -> int:
    """Nanoseconds since 1970, as exact as a datetime is: to the microsecond."""
    return round(moment.timestamp() * 1_000_000) * 1_000
