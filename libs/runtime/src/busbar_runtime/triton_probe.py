"""Is this Triton telling the truth? Starts it, or asks it, and compares real numbers.

`/v2/health/ready` is true before any model is, and a Python backend with the wrong numpy answers
OK with empty outputs, so only an answer that equals the expected one counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from busbar_runtime.child import tethered
from busbar_runtime.ports import LOOPBACK, PortPool

START_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 30.0
POLL_INTERVAL_S = 0.1
STOP_GRACE_S = 15.0
LOG_TAIL_CHARS = 2000

PROBE_CONFIG = """
backend: "python"
max_batch_size: 0
input [ { name: "X", data_type: TYPE_FP32, dims: [ 3 ] }, \
{ name: "S", data_type: TYPE_STRING, dims: [ -1 ] } ]
output [ { name: "Y", data_type: TYPE_FP32, dims: [ 3 ] }, \
{ name: "T", data_type: TYPE_STRING, dims: [ -1 ] } ]
instance_group [ { kind: KIND_CPU, count: 1 } ]
"""

PROBE_MODEL = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
        s = pb_utils.get_input_tensor_by_name(request, "S").as_numpy()
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("Y", x * 2), pb_utils.Tensor("T", s[::-1].copy())]
        )
"""

PROBE_REQUEST: dict[str, Any] = {
    "inputs": [
        {"name": "X", "datatype": "FP32", "shape": [3], "data": [1.5, -2.0, 1e6]},
        {"name": "S", "datatype": "BYTES", "shape": [2], "data": ["left", "r\u00efght"]},
    ]
}
PROBE_ANSWER = {"Y": [3.0, -4.0, 2e6], "T": ["r\u00efght", "left"]}


class TritonWrongError(RuntimeError):
    """The server did not start, or did not return the numbers it should have."""


def call(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """POST `body` (GET when None) and return the JSON answer, {} when the answer is empty."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data)  # noqa: S310  # our own loopback address
    try:
        with urllib.request.urlopen(request, timeout=CALL_TIMEOUT_S) as answer:  # noqa: S310
            text = answer.read()
    except urllib.error.HTTPError as refusal:
        said = refusal.read().decode(errors="replace")
        raise TritonWrongError(f"{url}: HTTP {refusal.code}: {said}") from refusal
    return json.loads(text) if text else {}


def is_live(http_url: str) -> bool:
    """Whether the server answers at all; says nothing about its models."""
    try:
        call(f"{http_url}/v2/health/live")
    except (OSError, TritonWrongError):
        return False
    return True


def compare(
    http_url: str, model: str, request: dict[str, Any], expected: dict[str, list[Any]]
) -> None:
    """Raises TritonWrongError unless every expected output comes back exactly."""
    answer = call(f"{http_url}/v2/models/{model}/infer", request)
    outputs = {output["name"]: output.get("data") for output in answer.get("outputs", [])}
    for name, data in expected.items():
        if outputs.get(name) != data:
            raise TritonWrongError(f"{model}: {name} is {outputs.get(name)!r}, expected {data!r}")


@dataclass(frozen=True)
class TritonServer:
    """A running server: addresses without scheme for gRPC, with one for HTTP."""

    pid: int
    http_url: str
    grpc_address: str
    metrics_url: str

    def load(self, model: str) -> None:
        """Returns once the model is ready; TritonWrongError says why it is not."""
        call(f"{self.http_url}/v2/repository/models/{model}/load", {})


@contextlib.contextmanager
def started(
    argv: Callable[..., list[str]],
    *,
    repository: Path,
    log: Path,
    otlp_url: str = "http://127.0.0.1:9/v1/traces",  # the discard port
) -> Iterator[TritonServer]:
    """A live server on free ports, stopped at the end; it and its models die with this process."""
    pool = PortPool()
    ports = {name: pool.take() for name in ("http_port", "grpc_port", "metrics_port")}
    command = argv(**ports, repository=repository, otlp_url=otlp_url)
    with log.open("wb") as sink:
        process = subprocess.Popen(
            tethered(command, group=True),
            stdout=sink,
            stderr=sink,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    server = TritonServer(
        pid=process.pid,
        http_url=f"http://{LOOPBACK}:{ports['http_port']}",
        grpc_address=f"{LOOPBACK}:{ports['grpc_port']}",
        metrics_url=f"http://{LOOPBACK}:{ports['metrics_port']}/metrics",
    )
    try:
        _wait_until_live(process, server)
        yield server
    finally:
        _stop(process)
        pool.close()


def prove(argv: Callable[..., list[str]], *, work: Path) -> None:
    """Starts the server once with a probe model, compares its numbers, stops it."""
    repository = work / "repository"
    (repository / "probe" / "1").mkdir(parents=True, exist_ok=True)
    (repository / "probe" / "config.pbtxt").write_text(PROBE_CONFIG)
    (repository / "probe" / "1" / "model.py").write_text(PROBE_MODEL)
    log = work / "triton.log"
    try:
        with started(argv, repository=repository, log=log) as server:
            server.load("probe")
            compare(server.http_url, "probe", PROBE_REQUEST, PROBE_ANSWER)
    except (OSError, TritonWrongError) as problem:
        tail = log.read_text(errors="replace")[-LOG_TAIL_CHARS:] if log.exists() else ""
        raise TritonWrongError(f"{problem}; the end of {log}:\n{tail}") from problem
    shutil.rmtree(work)


def _wait_until_live(process: subprocess.Popen[bytes], server: TritonServer) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_live(server.http_url):
        if process.poll() is not None:
            raise TritonWrongError(f"tritonserver exited with {process.returncode} while starting")
        if time.monotonic() > deadline:
            raise TritonWrongError(f"tritonserver not live after {START_TIMEOUT_S:.0f} s")
        time.sleep(POLL_INTERVAL_S)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the processes of its models, and its guard
    process.wait()
