"""What a client sends after its answer, or ahead of it, is taken within bounds."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

BEYOND_ALL_SOCKET_BUFFERS = 100_000_000


@pytest.mark.parametrize(
    "rest",
    [
        "Content-Length: 9999999999\r\n\r\n",
        "Connection: close\r\nContent-Length: 9999999999\r\n\r\n",
        "Content-Length: none\r\n\r\n",
    ],
    ids=["kept alive", "closed", "no request"],
)
def test_no_more_than_a_few_bodies_is_taken_of_what_was_answered(
    edge_with: Any, key: str, rest: str
) -> None:
    edge = edge_with(linger_timeout_s=1, max_linger_bytes=1_000_000)
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    piece, taken = b"x" * 1_000_000, 0
    with edge.connect() as connection:
        connection.sendall((head + rest).encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 4")
        with contextlib.suppress(ConnectionError):
            while taken < BEYOND_ALL_SOCKET_BUFFERS:
                taken += connection.send(piece)

    assert taken < BEYOND_ALL_SOCKET_BUFFERS


def test_a_connection_lives_on_though_its_last_body_was_nearly_too_much(
    edge_with: Any, key: str
) -> None:
    edge = edge_with(max_linger_bytes=500_000)
    body = b"x" * 400_000
    head = f"Host: x\r\nAuthorization: Bearer {key}\r\n"
    post = f"POST /v1/embeddings HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n"
    with edge.connect() as connection:
        for _ in range(3):
            connection.sendall(post.encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
            connection.sendall(body)
        connection.sendall(f"GET /v1/models HTTP/1.1\r\n{head}\r\n".encode())

        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_requests_that_are_sent_ahead_wait_at_the_client(edge_with: Any) -> None:
    """They used to be read on with each answer to one of them, and were kept in memory."""
    edge = edge_with(write_timeout_s=30)
    ahead = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Long: %b\r\n\r\n" % (b"x" * 1000) * 1000
    sent_bytes = 0
    with edge.connect() as connection, contextlib.suppress(TimeoutError):
        connection.settimeout(1)
        while sent_bytes < BEYOND_ALL_SOCKET_BUFFERS:
            sent_bytes += connection.send(ahead)

    assert sent_bytes < BEYOND_ALL_SOCKET_BUFFERS
