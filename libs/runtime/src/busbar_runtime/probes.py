"""Readiness probes: each answers, without raising, whether a process can be used yet."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from urllib.parse import urlsplit

Probe = Callable[[], Awaitable[bool]]

ANSWER_TIMEOUT = timedelta(seconds=2)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.25


def tcp(host: str, port: int) -> Probe:
    """Ready once something accepts connections on the port."""

    async def probe() -> bool:
        return await _exchange(host, port, b"", expected=b"")

    return probe


def http(url: str) -> Probe:
    """Ready once a GET answers 200."""
    parts = urlsplit(url)
    host, port, path = parts.hostname or "", parts.port or 80, parts.path or "/"
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode()

    async def probe() -> bool:
        return await _exchange(host, port, request, expected=b"HTTP/1.1 200")

    return probe


def postgres(host: str, port: int, user: str) -> Probe:
    """Ready once Postgres asks for authentication instead of saying that it is starting up.

    Source: "Start-up" in the frontend/backend protocol, version 3.0.
    """
    body = struct.pack("!i", 196608) + b"user\0" + user.encode() + b"\0database\0postgres\0\0"
    startup = struct.pack("!i", len(body) + 4) + body

    async def probe() -> bool:
        return await _exchange(host, port, startup, expected=b"R")

    return probe


async def until(probe: Probe) -> None:
    """Poll until the probe says yes; the caller bounds the wait."""
    pause_s = FIRST_PAUSE_S
    while not await probe():
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)


async def _exchange(host: str, port: int, request: bytes, *, expected: bytes) -> bool:
    writer = None
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT.total_seconds()):
            reader, writer = await asyncio.open_connection(host, port)
            if not expected:
                return True
            writer.write(request)
            return await reader.readexactly(len(expected)) == expected
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False
    finally:
        if writer is not None:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
