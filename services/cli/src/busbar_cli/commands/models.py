"""busbar model: bundles in the model store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cyclopts import App
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from busbar_cli.api import Api, Json
from busbar_cli.output import DEFAULT, Output, err, show_bytes, show_digest, show_time, table
from busbar_cli.packing import Packed, pack

app = App(name="model", help="Model bundles: push a directory, list what is there.")

_CHUNK_BYTES = 1024 * 1024
_BUNDLES = "/admin/v1/bundles"


@app.command
def push(directory: Path, *, output: Output = DEFAULT) -> None:
    """Pack a model directory and push it, unless the same bundle is there already.

    Parameters
    ----------
    directory
        Holds busbar.yaml, config.pbtxt and the model's versions (1/, …).
    """
    bundle = push_directory(directory, show_progress=not output.json)
    output.print(bundle, f"{bundle['name']} {bundle['version']}  {bundle['digest']}")


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
        ]
        for one in answer["items"]
    ]
    output.print(answer, table(columns, rows, empty="none; push one: busbar model push DIR"))


def push_directory(directory: Path, *, show_progress: bool) -> Json:
    """Push a model directory; the bundle as the scheduler describes it."""
    api = Api("scheduler")
    with tempfile.TemporaryFile() as file:
        packed = pack(directory, file)
        there = [one for one in api.get(_BUNDLES)["items"] if one["digest"] == packed.digest]
        if there:
            return there[0]
        file.seek(0)
        return api.upload(
            _BUNDLES, _chunks(file, packed, directory.name, show_progress), packed.size_bytes
        )


def _chunks(file: BinaryIO, packed: Packed, name: str, show_progress: bool) -> Iterator[bytes]:
    columns = (
        TextColumn("pushing {task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    console = err()
    shown = show_progress and console.is_terminal
    with Progress(*columns, console=console, disable=not shown) as progress:
        task = progress.add_task(name, total=packed.size_bytes)
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
            progress.advance(task, len(chunk))
