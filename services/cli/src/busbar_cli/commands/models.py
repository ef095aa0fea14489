"""busbar model: bundles in the model store, and the keys that vouch for them."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated

from busbar_errors import Rejected
from busbar_messaging.bundles.sealing import SigningKey
from cyclopts import App, Parameter
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from busbar_cli.api import Api, Json
from busbar_cli.failures import CommandError, Exit
from busbar_cli.output import (
    DEFAULT,
    Output,
    begins,
    err,
    show_bytes,
    show_digest,
    show_time,
    table,
)
from busbar_cli.packing import Packed, Place, must_be_directory, pack

app = App(
    name="model", help="Model bundles: push a directory, list and remove what is there, make a key."
)

Approve = Again = DryRun = Annotated[bool, Parameter(negative="")]

_BUNDLES, _CHUNKS = "/admin/v1/bundles", "/admin/v1/chunks"
_ASKED_AT_ONCE = 4_096
_SENT_AT_ONCE = 4


@app.command
def push(
    directory: Path, *, approve: Approve = False, again: Again = False, output: Output = DEFAULT
) -> None:
    """Push a model directory: what is there already is not sent again, whoever pushed it.

    Parameters
    ----------
    directory
        Holds busbar.yaml, config.pbtxt and the model's versions (1/, …).
    approve
        Vouch for its code, too: Python, pickles and libraries run on nodes only with an
        approver's seal.
    again
        Send what is there already, too: it mends what nodes say was stored with another digest.
    """
    bundle = push_directory(directory, approve=approve, again=again, show_progress=not output.json)
    output.print(bundle, f"{bundle['name']} {bundle['version']}  {bundle['digest']}")


@app.command
def key(file: Path, *, output: Output = DEFAULT) -> None:
    """Make a key to seal bundles with, or show the public half of the one in FILE.

    Services trust it once it stands in their BUSBAR_BUNDLE_PUBLISHERS or _APPROVERS.
    """
    if not file.exists():
        _write_new(file, SigningKey.make())
    public = _read_key(file).public
    output.print({"file": str(file), "public_key": public}, public)


@app.command(name="list")
def list_(*, output: Output = DEFAULT) -> None:
    """List the pushed bundles, newest first."""
    answer = Api("scheduler").get(_BUNDLES)
    columns = [
        "NAME",
        "VERSION",
        "TASK",
        "DIGEST",
        "SIZE>",
        "MEMORY>",
        "SLOTS>",
        "PRICES",
        "PUSHED",
        "USED",
    ]
    rows = [
        [
            one["name"],
            one["version"],
            one["task"],
            show_digest(one["digest"]),
            show_bytes(one["size_bytes"]),
            f"{one['memory_mib']} MiB",
            one["slots"],
            one["price_class"],
            show_time(one["pushed_unix_ms"]),
            "; ".join(one["uses"]),
        ]
        for one in answer["items"]
    ]
    output.print(answer, table(columns, rows, empty="none; push one: busbar model push DIR"))


@app.command
def rm(name: str, version: str, *, digest: str = "", output: Output = DEFAULT) -> None:
    """Remove a bundle that no deployment serves or may go back to.

    Chunks that no other bundle has are deleted by themselves, a day after they were stored.

    Parameters
    ----------
    digest
        Which one, where several were pushed under this name and version; as `list` shows it.
    """
    api = Api("scheduler")
    found = [
        one["digest"]
        for one in api.get(_BUNDLES)["items"]
        if (one["name"], one["version"]) == (name, version) and begins(one["digest"], digest)
    ]
    if not found:
        raise CommandError(f"no such bundle: {name} {version} {digest}".rstrip(), Exit.NOT_FOUND)
    if len(found) > 1:
        raise CommandError(f"say which one with --digest: {', '.join(found)}", Exit.USAGE)
    api.delete(f"{_BUNDLES}/{found[0]}")
    output.print({"removed": found[0]}, f"removed {name} {version}  {found[0]}")


@app.command
def sweep(*, dry_run: DryRun = False, output: Output = DEFAULT) -> None:
    """Delete what no bundle consists of; done by itself every ten minutes.

    What is unused is condemned first, and deleted a quarter of an hour later.

    Parameters
    ----------
    dry_run
        Only say what would be done.
    """
    answer = Api("scheduler").post(f"{_CHUNKS}/sweep", {"dry_run": dry_run})
    rows = [
        [what, answer[what]["objects"], show_bytes(answer[what]["bytes"])]
        for what in ("used", "young", "condemned", "spared", "waiting", "deleted")
    ]
    output.print(answer, table(["WHAT", "OBJECTS>", "SIZE>"], rows))


def push_directory(
    directory: Path, *, approve: bool, show_progress: bool, again: bool = False
) -> Json:
    """Push a model directory; the bundle as the scheduler describes it."""
    api = Api("scheduler")
    must_be_directory(directory)
    signing_key = _read_key(api.endpoints.signing_key)
    bytes_max = api.get(_BUNDLES)["bundle_bytes_max"]
    with _reading(directory, shown=show_progress):
        packed = pack(directory, bytes_max)
    missing = list(packed.chunks) if again else _missing(api, packed)
    _send(api, packed, missing, directory.name, show_progress=show_progress)
    seal = signing_key.seal(packed.contents, approves_code=approve)
    body = {
        "contents": base64.b64encode(packed.contents).decode(),
        "seal": {
            "public_key": seal.public_key.hex(),
            "signature": seal.signature.hex(),
            "approves_code": seal.approves_code,
        },
    }
    return api.put(f"{_BUNDLES}/{packed.digest}", body)


def _reading(directory: Path, *, shown: bool) -> AbstractContextManager[object]:
    console = err()
    if not shown or not console.is_terminal:
        return nullcontext()
    return console.status(f"reading {directory.name}")


def _send(
    api: Api, packed: Packed, missing: Sequence[bytes], name: str, *, show_progress: bool
) -> None:
    columns = (
        TextColumn("pushing {task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    console = err()
    shown = show_progress and console.is_terminal

    def send(sha256: bytes) -> int:
        place = packed.chunks[sha256]
        api.send(f"{_CHUNKS}?sha256={sha256.hex()}", place.read(sha256))
        return place.size_bytes

    with (
        Progress(*columns, console=console, disable=not shown) as progress,
        ThreadPoolExecutor(_SENT_AT_ONCE) as threads,
    ):
        total = _bytes_of(packed.chunks.values())
        to_send = _bytes_of(packed.chunks[sha256] for sha256 in missing)
        task = progress.add_task(name, total=total, completed=total - to_send)
        for sent_bytes in threads.map(send, missing):
            progress.advance(task, sent_bytes)


def _missing(api: Api, packed: Packed) -> list[bytes]:
    wanted, missing = [sha256.hex() for sha256 in packed.chunks], list[bytes]()
    for first in range(0, len(wanted), _ASKED_AT_ONCE):
        asked = {"sha256": wanted[first : first + _ASKED_AT_ONCE]}
        answer = api.post(f"{_CHUNKS}/missing", asked)
        missing += [bytes.fromhex(one) for one in answer["sha256"]]
    return missing


def _bytes_of(places: Iterable[Place]) -> int:
    return sum(place.size_bytes for place in places)


def _read_key(file: Path) -> SigningKey:
    try:
        return SigningKey.from_pem(file.read_bytes())
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error}", Exit.USAGE) from error
    except Rejected as error:
        raise CommandError(f"{file}: {error.reason}", Exit.USAGE) from error


def _write_new(file: Path, made: SigningKey) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise CommandError(f"{file} cannot be written: {error}", Exit.USAGE) from error
    with os.fdopen(descriptor, "wb") as out:
        out.write(made.pem())
