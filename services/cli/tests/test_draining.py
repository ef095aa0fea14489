"""Waiting for a node that a scheduler says is not empty yet."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from busbar_cli.commands import places
from busbar_cli.main import run

DRAIN = ["node", "drain", "r1/s1/n1", "--wait", "--grace"]


class Scheduler(BaseHTTPRequestHandler):
    """Has one node, from which one model goes some time after it was drained."""

    gone_after_s: ClassVar[float]
    drained_s: ClassVar[float]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).drained_s = time.monotonic()
        self._say(node(empty=False))

    def do_GET(self) -> None:
        if self.path.endswith("/nodes"):
            empty = time.monotonic() - self.drained_s >= self.gone_after_s
            self._say({"items": [node(empty=empty)]})
        elif self.path.endswith("/deployments"):
            self._say({"items": []})
        else:
            self._say(node(empty=False))

    def _say(self, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # as it is called there
        del format, args


def node(*, empty: bool) -> dict[str, Any]:
    counts = {"finished_count": 3, "handed_back_count": 0}
    return {"node": "r1.s1.n1", "replicas": [{"deployment": "m"}], "empty": empty, **counts}


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Scheduler]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Scheduler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        at = f"http://127.0.0.1:{server.server_port}"
        endpoints = tmp_path / "endpoints.json"
        endpoints.write_text(json.dumps({"admin": {"scheduler": at}, "keys": {"operator": "op_x"}}))
        monkeypatch.setenv("BUSBAR_ENDPOINTS", str(endpoints))
        yield Scheduler
        server.shutdown()
        serving.join()


def test_a_drain_says_how_much_longer_than_its_grace_it_took_and_why(
    scheduler: type[Scheduler], capsys: pytest.CaptureFixture[str]
) -> None:
    scheduler.gone_after_s = 1.6
    status = run([*DRAIN, "1"])
    late = capsys.readouterr().out.splitlines()[-1]
    scheduler.gone_after_s = 0.0
    in_time_status = run([*DRAIN, "600"])
    in_time = capsys.readouterr().out.splitlines()[-1]

    assert (status, in_time_status) == (0, 0)
    assert late.startswith("Took ")
    assert "s longer than its grace, for unloading; 0 requests" in late
    assert "grace" not in in_time


def test_a_drain_that_does_not_end_says_how_long_was_waited(
    scheduler: type[Scheduler],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(places, "_LATE_S", 0.5)
    scheduler.gone_after_s = 3600.0
    status = run([*DRAIN, "1"])

    assert status == 4
    assert capsys.readouterr().err == (
        "busbar: r1/s1/n1 not empty after 1.5 s, 0.5 s longer than the grace; what loads or "
        "unloads there may take longer: see busbar node show\n"
    )
