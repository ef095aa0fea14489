"""Where a request ends, and what may stand around its body."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from typing import Any

import pytest
from raw_http import read_answer

BEYOND_ALL_SOCKET_BUFFERS = 60_000_000
ASKED = json.dumps({"model": "embedder", "input": "a"}).encode()


@pytest.mark.parametrize(
    "start",
    [b"0\r\nx-a: ", b"0\r\n", b"5;", b"5;a=", b'5;a="', b"1\r\na\r\n0\r\nx-a: b\r\nx-b: "],
    ids=["value", "name", "extension", "its value", "quoted", "second trailer"],
)
def test_what_surrounds_a_body_has_an_end_though_the_answer_has_left(
    edge_with: Any, start: bytes
) -> None:
    edge = edge_with(linger_timeout_s=60)
    head = b"POST /nope HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    taken = 0
    with edge.connect() as connection:
        connection.sendall(head + start)
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")
        with contextlib.suppress(ConnectionError):
            while taken < BEYOND_ALL_SOCKET_BUFFERS:
                taken += connection.send(b"b" * 100_000)

    assert taken < BEYOND_ALL_SOCKET_BUFFERS


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v2/models/simple/infer"])
@pytest.mark.parametrize("start", [b"0\r\nx-a: ", b"0\r\n", b"5;a="])
def test_too_much_around_a_body_is_refused_in_the_routes_own_shape(
    edge: Any, key: str, path: str, start: bytes
) -> None:
    before = len(edge.serving.calls)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    with edge.connect() as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + start)
        connection.sendall(b"b" * 300_000)
        status, headers, body = read_answer(connection)

    assert (status, headers["connection"]) == (431, "close")
    error = json.loads(body)["error"]
    assert "trailers" in (error if path.startswith("/v2") else error["message"])
    assert len(edge.serving.calls) == before


@pytest.mark.parametrize(
    ("each", "extension", "trailers"),
    [(1, b"", b""), (8, b"", b"x-a: b\r\n"), (8000, b";chunk-signature=" + b"0" * 64, b"")],
    ids=["single bytes", "a trailer", "signed chunks"],
)
def test_a_body_may_come_in_any_number_of_chunks(
    edge_with: Any, key: str, each: int, extension: bytes, trailers: bytes
) -> None:
    edge = edge_with(max_head_bytes=1000, max_body_bytes=100_000, body_timeout_s=60)
    body = ASKED + b" " * 20_000
    chunks = b"".join(
        b"%x%b\r\n%b\r\n" % (len(part), extension, part)
        for part in (body[at : at + each] for at in range(0, len(body), each))
    )
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    framed = chunks + b"0\r\n" + trailers + b"\r\n"
    with edge.connect() as connection:
        connection.sendall(
            f"{head}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        for at in range(0, len(framed), 7):
            connection.sendall(framed[at : at + 7])
        status, _, _ = read_answer(connection)

    assert status == 200


# --- offers of another protocol --------------------------------------------------------------

UPGRADES = {
    "h2c": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "websocket": "Connection: Upgrade\r\nUpgrade: websocket\r\n",
}


@pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES)
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("piece", [1, 50, 100_000])
def test_a_body_is_read_whatever_protocol_is_asked_for(
    edge: Any, key: str, upgrade: str, chunked: bool, piece: int
) -> None:
    before = len(edge.serving.calls)
    post = upgrade_request("POST /v1/embeddings", key, upgrade, ASKED, chunked=chunked)
    statuses = statuses_of(edge, post + post + last_request(key), piece)

    assert statuses == [200, 200, 200]
    assert len(edge.serving.calls) == before + 2


@pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES)
@pytest.mark.parametrize("piece", [1, 50, 100_000])
def test_what_follows_a_request_for_another_protocol_is_served(
    edge: Any, key: str, upgrade: str, piece: int
) -> None:
    get = upgrade_request("GET /v1/models", key, upgrade)
    statuses = statuses_of(edge, get + get + last_request(key), piece)

    assert statuses == [200, 200, 200]


@pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES)
@pytest.mark.parametrize("piece", [1, 50, 100_000])
def test_a_body_is_never_taken_for_a_request(edge: Any, key: str, upgrade: str, piece: int) -> None:
    before = len(edge.serving.calls)
    hidden = upgrade_request("POST /v1/embeddings", key, "", ASKED)
    post = upgrade_request("POST /v1/embeddings", key, upgrade, hidden)
    statuses = statuses_of(edge, post + last_request(key), piece)

    assert statuses == [400, 200]
    assert len(edge.serving.calls) == before


def test_malformed_chunks_are_refused_whatever_protocol_is_asked_for(edge: Any, key: str) -> None:
    head = upgrade_request("POST /v1/embeddings", key, UPGRADES["h2c"], b"", chunked=True)
    broken = head.removesuffix(b"0\r\n\r\n") + b"XYZ\r\n"

    assert statuses_of(edge, broken) == [400]


def test_many_requests_for_another_protocol_may_come_at_once(edge: Any, key: str) -> None:
    get = upgrade_request("GET /v2/health/live", key, UPGRADES["h2c"])

    assert statuses_of(edge, get * 1500 + last_request(key)) == [200] * 1501


def upgrade_request(
    line: str, key: str, upgrade: str, body: bytes = b"", *, chunked: bool = False
) -> bytes:
    head = f"{line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n{upgrade}"
    if chunked:
        chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk + b"0\r\n\r\n"
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{head}{length}\r\n".encode() + body


def last_request(key: str) -> bytes:
    return upgrade_request("GET /v1/models", key, "Connection: close\r\n")


def statuses_of(edge: Any, data: bytes, piece: int = 1_000_000) -> list[int]:
    """Send the bytes, so many at a time; return the status of each answer until the end."""
    with edge.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):
            for at in range(0, len(data), piece):
                connection.sendall(data[at : at + piece])
        parts: list[bytes] = []
        while part := connection.recv(65536):
            parts.append(part)
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+) ", b"".join(parts))]
