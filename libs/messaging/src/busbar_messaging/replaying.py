"""Reading the dead letters, and sending them back to where they came from once the cause is gone.

A letter is replayed by publishing what it holds into the stream of its origin
and then deleting it: whoever still cannot handle it writes a new letter. Both
steps may be repeated: the stream drops a second copy for as long as it looks
back, and billing posts a request once for ever.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from busbar_errors import NotFound, Rejected
from nats.js.api import RawStreamMsg
from nats.js.client import JetStreamContext
from nats.js.errors import NotFoundError

from busbar_messaging import topology
from busbar_messaging.connection import publish_durably
from busbar_messaging.dead_letters import REASON, SEQUENCE, STORED_AT, STREAM, SUBJECT

LETTERS_MAX = 10_000
_GIVE_UP_AFTER = timedelta(seconds=15)
_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter. `sequence` in the stream DLQ is its id."""

    sequence: int
    subject: str
    put_aside_at: datetime
    reason: str
    origin_subject: str
    """Where its message was published; "" when nobody may send it back."""
    origin_stream: str
    origin_sequence: int
    stored_at: str
    """Unix ns, as text; "" in letters that do not say."""
    payload: bytes

    @property
    def replayable(self) -> bool:
        """Whether anybody waits for it: requests and facts are over, money is not."""
        return topology.is_replayable(self.origin_subject)

    @property
    def kept_because(self) -> str:
        """Why it is not sent back; "" when it may be."""
        if self.replayable:
            return ""
        if self.subject == topology.DEAD_WORK:
            return "whoever asked was told that it failed and paid nothing, and may ask again"
        if topology.is_event(self.origin_subject):
            return "it is a fact that others heard, and would hear twice"
        if not self.origin_subject:
            return "it does not say where it came from"
        return f"nobody waits for what came on {self.origin_subject}"


async def letters(
    jetstream: JetStreamContext, *, subject: str = ">", limit: int = LETTERS_MAX
) -> AsyncIterator[Letter]:
    """The oldest `limit` letters there are now whose subject matches, in order."""
    state = (await jetstream.stream_info(topology.DLQ.name)).state
    sequence = max(1, state.first_seq)
    for _ in range(min(limit, LETTERS_MAX)):
        try:
            found = await jetstream.get_msg(topology.DLQ.name, sequence, subject=subject, next=True)
        except NotFoundError:
            return
        letter = _read(found)
        if letter.sequence > state.last_seq:
            return
        yield letter
        sequence = letter.sequence + 1


async def letter(jetstream: JetStreamContext, sequence: int) -> Letter:
    """One letter; raises NotFound when there is none, or when it was replayed."""
    try:
        return _read(await jetstream.get_msg(topology.DLQ.name, sequence))
    except NotFoundError as error:
        raise NotFound(f"there is no dead letter {sequence}: perhaps it was replayed") from error


async def replay(jetstream: JetStreamContext, found: Letter) -> int:
    """Send a letter back; returns its new sequence in its stream.

    Raises Rejected when nobody waits for it, and Unavailable when its stream does
    not acknowledge; then the letter is still there.
    """
    if not found.replayable:
        raise Rejected(f"dead letter {found.sequence} is not replayed: {found.kept_because}")
    acknowledged = await publish_durably(
        jetstream,
        found.origin_subject,
        found.payload,
        message_id=f"dead-letter-{found.sequence}",
        give_up_after=_GIVE_UP_AFTER,
        headers={STORED_AT: found.stored_at} if found.stored_at else {},
    )
    await jetstream.delete_msg(topology.DLQ.name, found.sequence)
    return acknowledged.seq


def _read(message: RawStreamMsg) -> Letter:
    headers = message.headers or {}
    sequence = headers.get(SEQUENCE, "")
    return Letter(
        sequence=message.seq or 0,
        subject=message.subject or "",
        put_aside_at=message.time or _EPOCH,
        reason=headers.get(REASON, ""),
        origin_subject=headers.get(SUBJECT, ""),
        origin_stream=headers.get(STREAM, ""),
        origin_sequence=int(sequence) if sequence.isdigit() else 0,
        stored_at=headers.get(STORED_AT, ""),
        payload=message.data or b"",
    )
