"""busbar bus letters, letter and replay: what nobody could handle, and a second chance for it."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Annotated, Any, cast

from busbar_contracts.gateway.v1.usage_pb2 import UsageRecorded
from busbar_contracts.node.v1.status_pb2 import WorkMeasuredBatch
from busbar_contracts.node.v1.work_pb2 import InferenceWork
from busbar_messaging import replaying
from busbar_messaging.provision import ProvisionSettings
from busbar_messaging.replaying import LETTERS_MAX, Letter
from busbar_messaging.topology import DEAD_WORK, USAGE, is_event
from cyclopts import Parameter
from cyclopts.validators import Number
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message
from nats.aio.client import Client
from nats.js.client import JetStreamContext

from busbar_cli.api import Listed
from busbar_cli.bus_session import on_the_bus
from busbar_cli.failures import CommandError, Exit
from busbar_cli.output import DEFAULT, Output, brief, show_bytes, show_time, table

LetterId = Annotated[int, Parameter(validator=Number(gte=1))]
Bounded = Annotated[int, Parameter(validator=Number(gte=1, lte=LETTERS_MAX))]

_COLUMNS = ["ID>", "PUT ASIDE", "FROM", "SEQUENCE>", "SIZE>", "REASON"]
_IDS = frozenset({"request_id", "lease_id"})


def list_letters(*, subject: str = ">", limit: Bounded = 50, output: Output = DEFAULT) -> None:
    """List dead letters, the oldest first, each with the reason.

    Parameters
    ----------
    subject
        Only these, as NATS matches subjects: busbar.dlq.billing.billing-usage, or with wildcards.
    limit
        How many at most.
    """

    async def work(client: Client, _: ProvisionSettings) -> list[Letter]:
        # The one too many only says that there are more.
        return await _selected(client.jetstream(timeout=5), (), subject, limit + 1)

    found = on_the_bus("operator", work)
    listed = Listed([_summary(one) for one in found[:limit]], more=len(found) > limit)
    rows = [_row(one) for one in found[:limit]]
    output.print_list(listed, table(_COLUMNS, rows, empty="no dead letters"))


def letter(letter_id: LetterId, *, output: Output = DEFAULT) -> None:
    """Show one dead letter with what it holds.

    Parameters
    ----------
    letter_id
        As `letters` shows it.
    """

    async def work(client: Client, _: ProvisionSettings) -> Letter:
        return await replaying.letter(client.jetstream(timeout=5), letter_id)

    found = on_the_bus("operator", work)
    answer = {**_summary(found), "content": readable(found), "payload_hex": found.payload.hex()}
    rows = [[name, _shown(value)] for name, value in answer.items()]
    output.print(answer, table(["FIELD", "VALUE"], rows))


def replay(
    *letter_ids: LetterId,
    subject: str | None = None,
    all_: Annotated[bool, Parameter(name="--all", negative="")] = False,
    limit: Bounded = 1_000,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    output: Output = DEFAULT,
) -> None:
    """Send dead letters back to where they came from, once the cause is gone.

    Records of usage and measured work go back; requests and facts are over, and their letters say
    so and stay. Safe to repeat: a request is charged once however often its record comes, and
    what still cannot be handled becomes a dead letter again.

    Parameters
    ----------
    letter_ids
        Those to replay, as `letters` shows them.
    subject
        All whose subject matches, as NATS matches subjects.
    all_
        All of them.
    limit
        How many at most, the oldest first.
    dry_run
        Only say what would be replayed.
    """
    if sum((bool(letter_ids), subject is not None, all_)) != 1:
        raise CommandError("say which: ids, --subject or --all, and only one of them", Exit.USAGE)

    async def work(client: Client, _: ProvisionSettings) -> list[dict[str, Any]]:
        jetstream = client.jetstream(timeout=5)
        found = await _selected(jetstream, letter_ids, subject or ">", limit)
        return [await _replayed(jetstream, one, dry_run=dry_run) for one in found]

    done = on_the_bus("operator", work)
    rows = [
        [one["letter_id"], one["state"], one["sequence"], one["origin_subject"]] for one in done
    ]
    columns = ["ID>", "STATE", "NEW SEQUENCE>", "TO"]
    output.print({"items": done}, table(columns, rows, empty="no dead letters"))
    kept = [one["letter_id"] for one in done if not one["replayable"]]
    if letter_ids and kept:
        raise CommandError(f"not replayed: {', '.join(map(str, kept))}")


async def _selected(
    jetstream: JetStreamContext, letter_ids: tuple[int, ...], subject: str, limit: int
) -> list[Letter]:
    if letter_ids:
        ids = list(dict.fromkeys(letter_ids))[:limit]
        return [await replaying.letter(jetstream, one) for one in ids]
    return [one async for one in replaying.letters(jetstream, subject=subject, limit=limit)]


async def _replayed(jetstream: JetStreamContext, found: Letter, *, dry_run: bool) -> dict[str, Any]:
    done: dict[str, Any] = {**_summary(found), "sequence": None}
    if not found.replayable:
        return {**done, "state": f"kept: {found.kept_because}"}
    if dry_run:
        return {**done, "state": "would be replayed"}
    return {**done, "state": "replayed", "sequence": await replaying.replay(jetstream, found)}


def _summary(found: Letter) -> dict[str, Any]:
    return {
        "letter_id": found.sequence,
        "subject": found.subject,
        "put_aside_unix_ms": round(found.put_aside_at.timestamp() * 1000),
        "reason": found.reason,
        "origin_subject": found.origin_subject,
        "origin_stream": found.origin_stream,
        "origin_sequence": found.origin_sequence,
        "size_bytes": len(found.payload),
        "replayable": found.replayable,
    }


def _row(found: Letter) -> list[str]:
    return [
        str(found.sequence),
        show_time(found.put_aside_at.timestamp() * 1000),
        found.origin_subject or found.subject,
        str(found.origin_sequence or ""),
        show_bytes(len(found.payload)),
        brief(found.reason),
    ]


def readable(found: Letter) -> dict[str, Any] | None:
    """What a letter holds, field by field, ids in hex; None when it cannot be read."""
    message = _empty(found)
    if message is None:
        return None
    try:
        message.ParseFromString(found.payload)
    except DecodeError:
        return None
    return _ids_in_hex(MessageToDict(message, preserving_proto_field_name=True))


def _empty(found: Letter) -> Message | None:
    """What its payload is read as; None for facts, of which there are many kinds."""
    if found.origin_stream == USAGE.name:
        return UsageRecorded()
    if found.subject == DEAD_WORK:
        return InferenceWork()
    return None if is_event(found.origin_subject) else WorkMeasuredBatch()


def _ids_in_hex(content: Any, name: str = "") -> Any:
    """JSON of protobuf writes bytes in base64; ids are shown in hex everywhere else."""
    if isinstance(content, dict):
        fields = cast("dict[str, Any]", content)
        return {name: _ids_in_hex(value, name) for name, value in fields.items()}
    if isinstance(content, list):
        return [_ids_in_hex(value) for value in cast("list[Any]", content)]
    return b64decode(content).hex() if name in _IDS else content


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
