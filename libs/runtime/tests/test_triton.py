"""Triton from its wheel: the install, what it tells, what it refuses, what it traces."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from busbar_runtime.home import REPO, Home
from busbar_runtime.triton import TritonInstall, ensure_triton, find_uv
from busbar_runtime.triton_command import triton_command
from busbar_runtime.triton_probe import TritonServer, TritonWrongError, call, compare, started
from busbar_runtime.triton_python import NoModelPythonError, find_model_python

MODELS = REPO / "deploy" / "demo" / "models"
ECHO = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [16], "data": [0.5] * 16}]}
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
LOOPBACK, LOOPBACK_IN_V6 = "0100007F", "0000000000000000FFFF00000100007F"
SAMPLED = f"00-{TRACE_ID}-00f067aa0ba902b7-01"

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


class OtlpSink(http.server.ThreadingHTTPServer):
    """Keeps the spans that are posted to it as OTLP/JSON."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Collect)
        self.spans: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"


class _Collect(http.server.BaseHTTPRequestHandler):
    server: OtlpSink  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        for resource in body["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                self.server.spans.extend(scope["spans"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Quiet."""


@pytest.fixture(scope="module")
def sink() -> Iterator[OtlpSink]:
    with OtlpSink() as sink:
        threading.Thread(target=sink.serve_forever, daemon=True).start()
        yield sink
        sink.shutdown()


@pytest.fixture(scope="module")
def install() -> TritonInstall:
    return ensure_triton(Home.of().cache)


@pytest.fixture(scope="module")
def server(
    install: TritonInstall, sink: OtlpSink, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    log = tmp_path_factory.mktemp("triton") / "triton.log"
    with started(install.argv, repository=MODELS, log=log, otlp_url=sink.url) as server:
        server.load("echo-fp32")
        yield server


def test_a_second_install_changes_nothing(install: TritonInstall) -> None:
    said: list[str] = []

    again = ensure_triton(Home.of().cache, progress=said.append)

    assert again == install
    assert said == []


def test_every_placeholder_is_in_the_command_and_none_in_the_argv(install: TritonInstall) -> None:
    values = {"http_port": 1, "grpc_port": 2, "metrics_port": 3}
    argv = install.argv(**values, repository="/models", otlp_url="http://127.0.0.1:9")

    assert "{" in " ".join(install.command)
    assert "{" not in " ".join(argv)
    with pytest.raises(KeyError):
        install.argv(**values)


async def test_an_install_killed_half_way_is_made_again_by_whoever_comes_next(
    tmp_path: Path, eventually: Eventually
) -> None:
    command = [sys.executable, "-m", "busbar_runtime", "install-triton", "--cache", str(tmp_path)]
    environment = {**os.environ, "UV": find_uv(Home.of().cache)}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    await eventually(lambda: any(tmp_path.glob("*.partial-*/*")))
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    both = [subprocess.Popen(command, env=environment) for _ in range(2)]
    codes = [process.wait(timeout=200) for process in both]
    left = sorted(path.name for path in tmp_path.iterdir())  # local and small

    assert codes == [0, 0]
    assert left == [ensure_triton(tmp_path).root.name, "triton.lock"]


def test_without_a_usable_python_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    monkeypatch.setattr("busbar_runtime.triton_python.SUPPORTED", ("2.7",))

    with pytest.raises(NoModelPythonError, match="libpython"):
        find_model_python(tmp_path, uv="/bin/false", progress=lambda _: None)


def test_a_wrong_number_is_told_from_a_right_one(server: TritonServer) -> None:
    compare(server.http_url, "echo-fp32", ECHO, {"OUTPUT0": [0.5] * 16})

    for wrong in ([0.5] * 15, [0.5] * 15 + [0.25], []):
        with pytest.raises(TritonWrongError, match="OUTPUT0"):
            compare(server.http_url, "echo-fp32", ECHO, {"OUTPUT0": wrong})


@pytest.mark.parametrize("name", ["s p", "my clönes", 'it\'s $HOME; (a) "b" & c\\d', "a:b"])
def test_the_install_and_the_models_may_lie_anywhere(
    install: TritonInstall, tmp_path: Path, name: str
) -> None:
    odd = tmp_path / name
    odd.mkdir()
    (odd / "install").symlink_to(install.root)
    shutil.copytree(MODELS / "echo-fp32", odd / "models" / "echo-fp32")
    moved = replace(install, command=triton_command(odd / "install"))

    with started(moved.argv, repository=odd / "models", log=tmp_path / "log") as server:
        server.load("echo-fp32")

        compare(server.http_url, "echo-fp32", ECHO, {"OUTPUT0": [0.5] * 16})


def test_models_see_none_of_the_callers_environment(
    install: TritonInstall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUSBAR_NATS_PASSWORD", "a secret")
    with started(install.argv, repository=MODELS, log=tmp_path / "log") as server:
        environment = Path(f"/proc/{server.pid}/environ").read_text()

    assert "LD_LIBRARY_PATH" in environment
    assert "a secret" not in environment


def test_it_listens_on_loopback_only(server: TritonServer) -> None:
    ports = {int(url.split(":")[2].split("/")[0]) for url in (server.http_url, server.metrics_url)}
    ports.add(int(server.grpc_address.split(":")[1]))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    rows += [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    listening = [row[1].split(":") for row in rows if row[3] == "0A"]
    addresses = {address for address, port in listening if int(port, 16) in ports}

    assert addresses <= {LOOPBACK, LOOPBACK_IN_V6}
    assert addresses


@pytest.mark.parametrize(
    "path", ["systemsharedmemory/status", "logging", "models/echo-fp32/trace/setting"]
)
def test_shared_memory_logging_and_tracing_are_closed(server: TritonServer, path: str) -> None:
    with pytest.raises(TritonWrongError, match="restricted"):
        call(f"{server.http_url}/v2/{path}")


def test_shared_memory_is_closed_over_grpc_too(server: TritonServer) -> None:
    client = grpcclient.InferenceServerClient(server.grpc_address)

    with pytest.raises(grpcclient.InferenceServerException, match="restricted"):
        client.register_system_shared_memory("mine", "/somebodys", 64)


async def test_only_a_request_with_a_traceparent_is_traced(
    server: TritonServer, sink: OtlpSink, eventually: Eventually
) -> None:
    client = grpcclient.InferenceServerClient(server.grpc_address)
    values = grpcclient.InferInput("INPUT0", [16], "FP32")
    values.set_data_from_numpy(np.zeros(16, dtype=np.float32))

    for _ in range(3):
        client.infer("echo-fp32", [values])
        call(f"{server.http_url}/v2/models/echo-fp32/infer", ECHO)
    client.infer("echo-fp32", [values], headers={"traceparent": SAMPLED})
    await eventually(lambda: len(sink.spans) >= 3)

    assert {span["traceId"] for span in sink.spans} == {TRACE_ID}
    assert {span["name"] for span in sink.spans} == {"InferRequest", "echo-fp32", "compute"}
