"""A deployments file of which the scheduler takes a part."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from busbar_cli.main import run


class Scheduler(BaseHTTPRequestHandler):
    """Finds nothing wrong, and loses its lead before `third` is declared."""

    def do_POST(self) -> None:
        self._answer(204 if self.path.endswith("/check") else 404)

    def do_PUT(self) -> None:
        self._answer(503 if self.path.endswith("/third") else 200)

    def _answer(self, status: int) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        content = b'{"error": {"message": "no leader"}}' if status != 204 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # as it is called there
        del format, args


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Scheduler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        at = f"http://127.0.0.1:{server.server_port}"
        endpoints = tmp_path / "endpoints.json"
        endpoints.write_text(json.dumps({"admin": {"scheduler": at}, "keys": {"operator": "op_x"}}))
        monkeypatch.setenv("BUSBAR_ENDPOINTS", str(endpoints))
        yield
        server.shutdown()
        serving.join()


@pytest.mark.usefixtures("scheduler")
def test_what_fails_on_the_way_is_said_with_what_stands_already(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "models.yaml"
    names = ("first", "second", "third", "fourth", "fifth")
    file.write_text("".join(f"- {{name: {name}, bundle: simple}}\n" for name in names))
    status = run(["deploy", str(file)])
    _, err = capsys.readouterr()

    assert status == 4
    assert err == (
        "busbar: third: no leader\nDeclared before it: first, second. Not tried: fourth, fifth.\n"
    )
