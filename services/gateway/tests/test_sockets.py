"""The Unix socket of the grpcio server that stands behind the front."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import grpc.aio
import pytest
from busbar_gateway.adapters.grpc.native import behind


def listening(path: Path) -> socket.socket:
    path.parent.mkdir()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    server.listen(1)
    return server


async def test_killed_ones_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as place:
        monkeypatch.setattr(tempfile, "tempdir", place)
        killed, living = (
            Path(place, f"busbar-grpc-{name}", "fallback.sock") for name in ("killed", "living")
        )
        listening(killed).close()
        with listening(living):
            async with behind(grpc.aio.server()) as own:
                there = {path.parent for path in Path(place).glob("*/*")}
            after = list(Path(place).iterdir())

    assert there == {living.parent, own.parent}
    assert after == [living.parent]
