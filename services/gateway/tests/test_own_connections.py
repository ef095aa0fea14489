"""The front's connections among the files of this process."""

from __future__ import annotations

import os
import socket

import pytest
from busbar_gateway.adapters.grpc.sockets import connections, open_files


def test_a_file_that_changes_hands_while_it_is_looked_at_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The front may close a connection, and its number be another file's, at any moment."""
    readlink = os.readlink
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        closed, other = socket.socket().detach(), os.open(os.devnull, os.O_RDONLY)

        def changing(path: str) -> str:
            said = readlink(path)
            if path.endswith(f"/{closed}"):
                os.dup2(other, closed)
            return said

        before = open_files()
        monkeypatch.setattr(os, "readlink", changing)
        found = list(connections(port))
        monkeypatch.undo()
        after = open_files()
        os.close(closed)
        os.close(other)

    assert found == []
    assert after == before
