"""Driving one target with h2load and reading what it measured.

h2load (Debian's nghttp2-client) speaks HTTP/1.1 and HTTP/2, costs a few µs of
CPU per request, and logs every request's status and duration. It does not read
gRPC trailers, so the caller compares with the target's own count (answers.py).
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_MICROSECONDS_PER_MS = 1000.0


class LoadFailed(Exception):
    """The generator is missing or some requests did not succeed."""


@dataclass(frozen=True)
class Shot:
    """One request to repeat: URL, headers and body, and how it travels."""

    url: str
    headers: dict[str, str]
    body: bytes
    http2: bool


@dataclass(frozen=True)
class Measured:
    """What one run showed. Latencies in milliseconds."""

    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float


def require_generator() -> str:
    """Path of h2load; raises LoadFailed with how to get it."""
    found = shutil.which("h2load")
    if found is None:
        raise LoadFailed("h2load is missing: apt-get install nghttp2-client")
    return found


def drive(shot: Shot, in_flight: int, seconds: int) -> Measured:
    """Keep `in_flight` requests open for `seconds`; raise LoadFailed if any is refused."""
    connections, streams = _spread(in_flight, shot.http2)
    with tempfile.TemporaryDirectory() as scratch:
        body, log = Path(scratch, "body"), Path(scratch, "log")
        body.write_bytes(shot.body)
        command = [
            require_generator(),
            *("-c", str(connections), "-m", str(streams), "-t", "1"),
            *("-D", str(seconds), "-d", str(body), "--log-file", str(log)),
            *([] if shot.http2 else ["--h1"]),
            *[part for name, value in shot.headers.items() for part in ("-H", f"{name}: {value}")],
            shot.url,
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + 60, check=False
        )
        if done.returncode != 0:
            raise LoadFailed(f"h2load failed: {done.stderr or done.stdout}")
        return _read(log.read_text(), seconds, shot.url)


def _spread(in_flight: int, http2: bool) -> tuple[int, int]:
    """Connections and streams of each: HTTP/2 shares connections, HTTP/1.1 cannot."""
    if not http2:
        return in_flight, 1
    streams = min(in_flight, 8)
    return in_flight // streams, streams


def _read(log: str, seconds: int, url: str) -> Measured:
    rows = [line.split("\t") for line in log.splitlines()]
    refused = [row for row in rows if row[1] != "200"]
    if refused or not rows:
        raise LoadFailed(f"{len(refused)} of {len(rows)} requests to {url} were refused")
    durations = sorted(int(row[2]) for row in rows)
    quantiles = statistics.quantiles(durations, n=100) if len(durations) > 1 else durations * 99
    return Measured(
        requests=len(rows),
        requests_per_s=len(rows) / seconds,
        p50_ms=quantiles[49] / _MICROSECONDS_PER_MS,
        p99_ms=quantiles[98] / _MICROSECONDS_PER_MS,
    )


if __name__ == "__main__":  # whether there is a generator, before anything is started for it
    try:
        require_generator()
    except LoadFailed as error:
        sys.stderr.write(f"bench: {error}\n")
        sys.exit(2)
