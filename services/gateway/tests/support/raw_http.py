"""Answers as they are on the wire, read without a client that would smooth them over."""

from __future__ import annotations

import contextlib
import socket


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    parts: list[bytes] = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            parts.append(part)
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    if headers.get("transfer-encoding") == "chunked":
        body = unchunked(body)
    return int(lines[0].split()[1]) if head else 0, headers, body


def unchunked(data: bytes) -> bytes:
    chunks: list[bytes] = []
    at = 0
    while at < len(data):
        end = data.index(b"\r\n", at)
        length = int(data[at:end], 16)
        if not length:
            break
        chunks.append(data[end + 2 : end + 2 + length])
        at = end + 2 + length + 2
    return b"".join(chunks)
