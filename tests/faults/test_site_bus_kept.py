"""A site's NATS is started again where that mends something, and not while its disk is full."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from harness.liveness import NEEDED, POSSIBLE, alive

pytestmark = pytest.mark.skipif(not POSSIBLE, reason=NEEDED)

ANY_ROOM, NO_ROOM = Path("/tmp"), Path("/proc")
"""The second is a file system of which no block is free."""
SERVER_ONLY = "/healthz?js-server-only=true"


@contextmanager
def monitor(*healthy: str) -> Iterator[str]:
    """A server's monitor that answers 503 to all but these."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in healthy else 503)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


@pytest.mark.parametrize(
    ("healthy", "store", "kept"),
    [
        (["/healthz", SERVER_ONLY], ANY_ROOM, True),
        ([SERVER_ONLY], NO_ROOM, True),
        ([SERVER_ONLY], ANY_ROOM, False),
        ([], NO_ROOM, False),
    ],
    ids=["healthy", "disk-full", "room-again", "server-broken"],
)
async def test_it_is_left_alone_unless_a_start_mends_it(
    healthy: list[str], store: Path, *, kept: bool
) -> None:
    with monitor(*healthy) as address:
        assert await alive(address, store) == kept


async def test_one_that_does_not_answer_is_started_again() -> None:
    with monitor() as address:
        pass

    assert not await alive(address, NO_ROOM)
