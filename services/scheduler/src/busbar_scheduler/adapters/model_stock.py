"""The object store `models` as a whole: what is in it, since when, and how it is deleted.

What describes an object is written and deleted only at the revision that was read, so that an
object that was stored anew, or spared, meanwhile stays as it is. Contents have names of their own.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncGenerator, Iterator
from datetime import datetime
from typing import Any

from busbar_errors import Unavailable
from busbar_messaging.bundles.store import CONDEMNED
from busbar_messaging.topology import MODELS
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import DeliverPolicy, Header
from nats.js.errors import APIError, NotFoundError
from nats.js.errors import Error as JetStreamError

from busbar_scheduler.domain.sweeping import Inventory, Stored

_TIMEOUT_S = 10.0
_WRONG_LAST_SEQUENCE = {10071, 10164}
_STREAM = f"OBJ_{MODELS.name}"
_INFOS, _CONTENTS = f"$O.{MODELS.name}.M.", f"$O.{MODELS.name}.C."


class ModelStock:
    """Reads and changes the object store."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._jetstream = client.jetstream(timeout=_TIMEOUT_S)

    async def inventory(self) -> Inventory:
        """Everything that is in it; raises Unavailable."""
        with _own_terms("list what it has"):
            asked = json.dumps({"subjects_filter": f"$O.{MODELS.name}.>"}).encode()
            subject = f"$JS.API.STREAM.INFO.{_STREAM}"
            answer = await self._client.request(subject, asked, timeout=_TIMEOUT_S)
            said: dict[str, Any] = json.loads(answer.data)
            if "state" not in said or said.get("total", 0) > said.get("limit", 0):
                raise Unavailable(f"the model store cannot be listed: {said.get('error')}", 5.0)
            subjects = set(said["state"].get("subjects") or {})
            last = await self._last_info()
            objects = [_stored(message) async for message in self._infos(last)]
        if last > max((one.revision for one in objects), default=0):
            raise Unavailable("the model store cannot be listed: a copy of it lags behind", 5.0)
        claimed = {f"{_CONTENTS}{one.content}" for one in objects}
        unclaimed = {one for one in subjects if one.startswith(_CONTENTS)} - claimed
        return Inventory(
            objects=tuple(objects),
            unclaimed=tuple(sorted(one.removeprefix(_CONTENTS) for one in unclaimed)),
            now_unix_ms=_unix_ms(datetime.fromisoformat(said["ts"])),
        )

    async def _last_info(self) -> int:
        """The sequence of the description that was written last, by the stream's leader; or 0."""
        try:
            return (await self._jetstream.get_last_msg(_STREAM, f"{_INFOS}>")).seq or 0
        except NotFoundError:
            return 0

    async def _infos(self, last: int) -> AsyncGenerator[Msg]:
        """What describes each object; the last of each, until all have come that a copy has. One
        that was restarted just now may lack those up to `last`, or have an older one."""
        if not last:
            return
        subscription = await self._jetstream.subscribe(
            f"{_INFOS}>", ordered_consumer=True, deliver_policy=DeliverPolicy.LAST_PER_SUBJECT
        )
        try:
            pending = 1
            while pending:
                message = await subscription.next_msg(timeout=_TIMEOUT_S)
                pending = message.metadata.num_pending
                yield message
        finally:
            await subscription.unsubscribe()

    async def condemn(self, one: Stored) -> None:
        """Let it count as absent for whoever pushes."""
        await self._mark(one, condemned=True)

    async def spare(self, one: Stored) -> None:
        """Let it count again."""
        await self._mark(one, condemned=False)

    async def delete(self, one: Stored) -> None:
        """Delete it for good, its description first; what is described anew keeps its content."""
        subject = _info_subject(one.name)
        with _own_terms(f"delete {one.name}"):
            await self._jetstream.purge_stream(_STREAM, seq=one.revision + 1, subject=subject)
            with contextlib.suppress(NotFoundError):
                left = await self._jetstream.get_last_msg(_STREAM, subject)
                if json.loads(left.data or b"{}").get("nuid") == one.content:
                    return
        await self.delete_content(one.content)

    async def delete_content(self, content: str) -> None:
        """Delete content that belongs to no object."""
        with _own_terms(f"delete content {content}"):
            await self._jetstream.purge_stream(_STREAM, subject=f"{_CONTENTS}{content}")

    async def _mark(self, one: Stored, *, condemned: bool) -> None:
        subject = _info_subject(one.name)
        with _own_terms(f"mark {one.name}"):
            try:
                found = await self._jetstream.get_last_msg(_STREAM, subject)
            except NotFoundError:
                return
            info = json.loads(found.data or b"{}")
            info["headers"] = {CONDEMNED: ["1"]} if condemned else None
            headers: dict[str, str] = {
                Header.ROLLUP: "sub",
                Header.EXPECTED_LAST_SUBJECT_SEQUENCE: str(one.revision),
            }
            with _unless_changed():
                await self._jetstream.publish(subject, json.dumps(info).encode(), headers=headers)


def _stored(message: Msg) -> Stored:
    info: dict[str, Any] = json.loads(message.data)
    return Stored(
        name=info["name"],
        size_bytes=info.get("size") or 0,
        written_unix_ms=_unix_ms(message.metadata.timestamp),
        revision=message.metadata.sequence.stream,
        content=info["nuid"],
        condemned=CONDEMNED in (info.get("headers") or {}),
    )


def _info_subject(name: str) -> str:
    return f"{_INFOS}{base64.urlsafe_b64encode(name.encode()).decode()}"


def _unix_ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1_000)


@contextlib.contextmanager
def _unless_changed() -> Iterator[None]:
    """Nothing is to be done when somebody stored the object anew."""
    try:
        yield
    except APIError as error:
        if error.err_code not in _WRONG_LAST_SEQUENCE:
            raise


@contextlib.contextmanager
def _own_terms(what: str) -> Iterator[None]:
    try:
        yield
    except (NatsError, JetStreamError, TimeoutError, OSError) as error:
        raise Unavailable(f"the model store did not {what}: {error!r}", 5.0) from error
