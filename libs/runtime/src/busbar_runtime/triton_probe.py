"""Is this Triton telling the truth? Starts it, or asks it, and compares real numbers.

`/v2/health/ready` is true before any model is, and a Python backend with the wrong numpy answers
OK with empty outputs, so only an answer that equals the expected one counts.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROVE_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 30.0
POLL_INTERVAL_S = 0.1
STOP_GRACE_S = 15.0
LOG_TAIL_CHARS = 2000
PR_SET_PDEATHSIG = 1  # linux/prctl.h

_LIBC = ctypes.CDLL(None)

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
    except OSError:
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


def prove(argv: Callable[..., list[str]], *, work: Path) -> None:
    """Starts the server once with a probe model, compares its numbers, stops it."""
    repository = work / "repository"
    (repository / "probe" / "1").mkdir(parents=True, exist_ok=True)
    (repository / "probe" / "config.pbtxt").write_text(PROBE_CONFIG)
    (repository / "probe" / "1" / "model.py").write_text(PROBE_MODEL)
    http_port, grpc_port, metrics_port = _free_ports(3)
    command = argv(
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        repository=repository,
        otlp_url="http://127.0.0.1:9/v1/traces",
    )
    log = work / "triton.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdout=sink,
            stderr=sink,
            stdin=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,  # noqa: PLW1509  # it runs one system call
        )
    try:
        _prove_running(process, f"http://127.0.0.1:{http_port}")
    except (OSError, TritonWrongError) as problem:
        tail = log.read_text(errors="replace")[-LOG_TAIL_CHARS:]
        raise TritonWrongError(f"{problem}; the end of {log}:\n{tail}") from problem
    finally:
        _stop(process)
    shutil.rmtree(work)


def _prove_running(process: subprocess.Popen[bytes], http_url: str) -> None:
    deadline = time.monotonic() + PROVE_TIMEOUT_S
    while not is_live(http_url):
        if process.poll() is not None:
            raise TritonWrongError(f"tritonserver exited with {process.returncode} while starting")
        if time.monotonic() > deadline:
            raise TritonWrongError(f"tritonserver not live after {PROVE_TIMEOUT_S:.0f} s")
        time.sleep(POLL_INTERVAL_S)
    call(f"{http_url}/v2/repository/models/probe/load", {})
    compare(http_url, "probe", PROBE_REQUEST, PROBE_ANSWER)


def _die_with_parent() -> None:
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports
