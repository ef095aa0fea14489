"""Clients that do not read their answers: given up when they take nothing, served when slow."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from http_harness import RunningEdge
from stand_ins import KEY

VALUES_BYTES = 6_000_000
REFUSED = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
LIMITS = {"max_connections": 1, "max_body_bytes": 7_000_000}
"""With one place, whoever is turned away says that the one before is still held."""

Edges = Callable[..., RunningEdge]
Until = Callable[..., None]


def infer(*, version: str = "1.1", close: bool = False) -> bytes:
    """A request whose answer is larger than all buffers between a server and its client."""
    tensor = {
        "name": "INPUT0",
        "shape": [VALUES_BYTES],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": VALUES_BYTES},
    }
    document = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    head = [
        f"POST /v2/models/large/infer HTTP/{version}",
        "Host: x",
        f"Authorization: Bearer {KEY}",
        f"Inference-Header-Content-Length: {len(document)}",
        f"Content-Length: {len(document) + VALUES_BYTES}",
        *(["Connection: close"] if close else []),
    ]
    return "\r\n".join([*head, "", ""]).encode() + document + bytes(VALUES_BYTES)


@pytest.fixture
def client() -> Iterator[Callable[[RunningEdge], socket.socket]]:
    """Connect with a small window, as a client that means to read little."""
    opened: list[socket.socket] = []

    def connect(edge: RunningEdge) -> socket.socket:
        connection = socket.socket()
        opened.append(connection)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", edge.port))
        return connection

    yield connect
    for connection in opened:
        connection.close()


def is_open(edge: RunningEdge) -> bool:
    """Whether the only place is free again."""
    return edge.request("GET", "/v2/health/live")[0] == 200


@pytest.mark.parametrize(
    "request_bytes",
    [infer(close=True), infer(version="1.0"), infer()],
    ids=["close", "1.0", "kept alive"],
)
def test_who_takes_nothing_of_a_large_answer_is_given_up(
    edge_with: Edges, client: Callable[..., socket.socket], until: Until, request_bytes: bytes
) -> None:
    edge = edge_with(write_timeout_s=0.4, **LIMITS)
    client(edge).sendall(request_bytes)
    until(lambda: "charged" in edge.serving.ended.values())

    until(lambda: is_open(edge))


def test_who_half_closes_and_takes_nothing_is_given_up(
    edge_with: Edges, client: Callable[..., socket.socket], until: Until
) -> None:
    edge = edge_with(write_timeout_s=0.4, **LIMITS)
    connection = client(edge)
    connection.sendall(infer())
    until(lambda: "charged" in edge.serving.ended.values())
    connection.shutdown(socket.SHUT_WR)

    until(lambda: is_open(edge))


def test_who_sends_ahead_and_reads_no_refusal_is_given_up(
    edge_with: Edges, client: Callable[..., socket.socket], until: Until
) -> None:
    edge = edge_with(write_timeout_s=0.4, **LIMITS)
    connection = client(edge)
    connection.settimeout(1.5)
    send_all(connection, REFUSED * 300_000)

    until(lambda: is_open(edge))


def test_an_answer_behind_one_that_is_never_read_is_not_charged(
    edge_with: Edges, client: Callable[..., socket.socket], until: Until
) -> None:
    edge = edge_with(write_timeout_s=1, **LIMITS)
    threading.Thread(target=send_all, args=(client(edge), infer() * 2), daemon=True).start()
    until(lambda: len(edge.serving.calls) == 2)
    first, second = (call.request_id.hex() for call in edge.serving.calls)
    until(lambda: is_open(edge))

    assert edge.serving.ended == {first: "charged", second: "taken back"}
    assert [name for name, _ in edge.serving.handed_over] == [first]


@pytest.mark.parametrize("close", [False, True], ids=["kept alive", "close"])
def test_who_reads_slowly_is_served_to_the_end(
    edge_with: Edges, client: Callable[..., socket.socket], close: bool
) -> None:
    edge = edge_with(write_timeout_s=0.4, keep_alive_s=0.5, **LIMITS)
    connection = client(edge)
    connection.sendall(infer(close=close))
    answer = read_slowly(connection, for_s=2)
    while len(answer) < VALUES_BYTES and (piece := connection.recv(1_000_000)):
        answer += piece

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert len(answer) > VALUES_BYTES


def test_a_stream_that_is_read_slowly_ends_soon_after_its_deadline(
    edge_with: Edges, client: Callable[..., socket.socket], until: Until
) -> None:
    edge = edge_with(write_timeout_s=0.4, generation_timeout_s=0.8)
    connection = client(edge)
    connection.sendall(flood())
    until(lambda: bool(edge.serving.calls))
    name = edge.serving.calls[-1].request_id.hex()
    read_slowly(connection, for_s=1)
    assert edge.serving.ended[name] == "working"
    read_slowly(connection, for_s=2)

    assert edge.serving.ended[name].startswith("charged")


def flood() -> bytes:
    """A request whose answer is a stream of 64 MB."""
    body = json.dumps({"model": "chatty", "prompt": "!flood", "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def read_slowly(connection: socket.socket, for_s: float) -> bytes:
    """Read up to 100 kB a second: too little for the kernel to ask the server for more."""
    answer, pause, end = bytearray(), threading.Event(), time.monotonic() + for_s
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < end:
            answer += connection.recv(2048)
            pause.wait(0.02)
    return bytes(answer)


def send_all(connection: socket.socket, data: bytes) -> None:
    """Send, or find out that nobody takes it any more."""
    with contextlib.suppress(OSError):
        connection.sendall(data)
