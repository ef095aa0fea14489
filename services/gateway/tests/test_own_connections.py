"""The front's connections among the files of this process."""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack, closing

import pytest
from busbar_gateway.adapters.grpc.goodbye import say_goodbye
from busbar_gateway.adapters.grpc.sockets import Connections, open_files
from files_left import files_left

MANY = 1_000
GOODBYE_S = 1.0


async def test_a_file_that_changes_hands_while_it_is_looked_at_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The front may close a connection, and its number be another file's, at any moment."""
    dup2 = os.dup2
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        closed, other = socket.socket().detach(), os.open(os.devnull, os.O_RDONLY)

        def changing(descriptor: int, onto: int, inheritable: bool = True) -> int:
            if descriptor == closed:
                dup2(other, closed)
            return dup2(descriptor, onto, inheritable)

        before = len(open_files())
        monkeypatch.setattr(os, "dup2", changing)
        with closing(Connections(port)) as connections:
            found = [peer async for peer, _ in connections]
        monkeypatch.undo()
        after = len(open_files())
        os.close(closed)
        os.close(other)

    assert found == []
    assert after == before


async def test_connections_are_found_though_no_file_can_be_opened() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with (
            socket.create_connection(("127.0.0.1", port)) as client,
            server.accept()[0],
            closing(Connections(port)) as connections,
            files_left(0),
        ):
            found = [peer async for peer, _ in connections]
            peer = "ipv4:{}:{}".format(*client.getsockname())

    assert found == [peer]


async def test_goodbye_to_a_thousand_leaves_the_event_loop_most_of_its_time() -> None:
    """Calls in hand are answered meanwhile."""
    with files_left(2 * MANY + 50), ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=MANY))
        for _ in range(MANY):
            stack.enter_context(socket.create_connection(server.getsockname()))
            stack.enter_context(server.accept()[0])
        before_s = time.thread_time()
        await say_goodbye(server.getsockname()[1], GOODBYE_S)
        took_s = time.thread_time() - before_s

    assert took_s < 0.3 * GOODBYE_S
