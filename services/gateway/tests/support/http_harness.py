"""The HTTP edge on a real socket, in a thread of its own, in front of a stand-in for Serving.

The stand-in keeps ServesRequests' promises with models that answer at once, and
remembers how each request ended; the real Serving has its own tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import uvloop
from busbar_gateway.adapters.http.app import create_app, server_options
from busbar_gateway.adapters.http.idempotency import Idempotency
from busbar_gateway.adapters.http.limits import HttpLimits
from busbar_gateway.adapters.http.services import Services
from busbar_gateway.domain.failures import (
    ModelFailed,
)
from busbar_gateway.domain.routes import (
    Manifest,
    ModelSignature,
    Route,
    Target,
    Task,
    TensorSpec,
)
from busbar_gateway.usecases.calls import Answer, Chunk, InferenceCall, RefusedCall, Resumable
from busbar_observability.ops import serve_http
from memory_store import MemoryStore
from raw_http import read_answer
from stand_ins import KEY, StandInKeys, StandInLeave, StandInRoutes
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import deserialize_bytes_tensor

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' and loop.first %}"
    "{{ raise_exception('the first message cannot be the assistant\\'s') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
)
LIMITS = HttpLimits(
    max_body_bytes=256 * 1024,
    body_timeout_s=0.5,
    max_head_bytes=16 * 1024,
    max_headers=100,
    head_timeout_s=0.5,
    linger_timeout_s=2.0,
    max_connections=40,
    heartbeat_s=0.2,
    write_timeout_s=2.0,
)


def tensor(name: str, datatype: str, *shape: int, optional: bool = False) -> TensorSpec:
    return TensorSpec(name, datatype, shape, optional)


def make_route(
    name: str,
    task: Task,
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    *,
    batch: int = 0,
    decoupled: bool = False,
    ready: bool = True,
    tenants: frozenset[str] = frozenset(),
    **manifest: Any,
) -> Route:
    metadata = service_pb2.ModelMetadataResponse(name=name, versions=["1"], platform="python")
    for specs, target in ((inputs, metadata.inputs), (outputs, metadata.outputs)):
        for spec in specs:
            target.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    config = service_pb2.ModelConfigResponse(
        config=model_config_pb2.ModelConfig(
            name=name,
            backend="python",
            max_batch_size=batch,
            dynamic_batching=model_config_pb2.ModelDynamicBatching(
                max_queue_delay_microseconds=100,
                priority_queue_policy={
                    1: model_config_pb2.ModelQueuePolicy(default_timeout_microseconds=7)
                },
            ),
            input=[
                model_config_pb2.ModelInput(
                    name=spec.name, dims=list(spec.shape), optional=spec.optional
                )
                for spec in inputs
            ],
            model_transaction_policy=model_config_pb2.ModelTransactionPolicy(decoupled=decoupled),
        )
    )
    signature = ModelSignature(
        frozenset({"1"}),
        {spec.name: spec for spec in inputs},
        {spec.name: spec for spec in outputs},
        batch,
        decoupled,
    )
    return Route(
        deployment=name,
        manifest=Manifest(name=name, version="1", task=task, price_class="test", **manifest),
        created_unix_s=1_700_000_000,
        targets=(Target("r1", 4),) if ready else (),
        tenants=tenants,
        signature=signature if ready else None,
        metadata=metadata.SerializeToString() if ready else b"",
        config=config.SerializeToString() if ready else b"",
    )


_GENERATION_INPUTS = [
    tensor("text_input", "BYTES", 1),
    tensor("stream", "BOOL", 1, optional=True),
    tensor("sampling_parameters", "BYTES", 1, optional=True),
    *[
        tensor(option, "BOOL", 1, optional=True)
        for option in (
            "exclude_input_in_output",
            "return_finish_reason",
            "return_num_input_tokens",
            "return_num_output_tokens",
        )
    ],
]


def generation_route(name: str) -> Route:
    """A deployment that speaks the vLLM backend's tensors."""
    return make_route(
        name,
        "chat",
        _GENERATION_INPUTS,
        [tensor("text_output", "BYTES", -1), tensor("finish_reason", "BYTES", -1)],
        decoupled=True,
        max_output_tokens=1000,
        chat_template=TEMPLATE,
        stop=("\nuser:",),
    )


ROUTES = [
    make_route(
        "simple",
        "tensor",
        [tensor("INPUT0", "INT32", -1, 16), tensor("INPUT1", "INT32", -1, 16)],
        [tensor("OUTPUT0", "INT32", -1, 16), tensor("OUTPUT1", "INT32", -1, 16)],
        batch=8,
    ),
    *[
        make_route(
            f"echo-{datatype.lower()}",
            "tensor",
            [tensor("INPUT0", datatype, -1)],
            [tensor("OUTPUT0", datatype, -1)],
            max_payload_bytes=128 * 1024,
        )
        for datatype in (
            "FP32",
            "FP64",
            "FP16",
            "BF16",
            "BYTES",
            "BOOL",
            "UINT8",
            "INT64",
            "UINT64",
        )
    ],
    make_route(
        "large", "tensor", [tensor("INPUT0", "UINT8", -1)], [tensor("OUTPUT0", "UINT8", -1)]
    ),
    make_route(
        "embedder",
        "embed",
        [tensor("text", "BYTES", -1), tensor("truncate", "BOOL", 1, optional=True)],
        [tensor("embedding", "FP32", -1, 4), tensor("num_input_tokens", "INT32", -1)],
    ),
    generation_route("chatty"),
    make_route("absent", "tensor", [], [], ready=False),
    make_route("secret", "tensor", [], [], tenants=frozenset({"somebody-else"})),
]


@dataclass
class StandInServing:
    """Keeps the promises of ServesRequests; `ended` says how each request ended for billing."""

    calls: list[InferenceCall] = field(default_factory=list)
    requests: list[service_pb2.ModelInferRequest] = field(default_factory=list)
    ended: dict[str, str] = field(default_factory=dict)
    refusals: list[RefusedCall] = field(default_factory=list)
    handed_over: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Whose last byte was about to leave, and how it would have ended then."""
    failure: Exception | None = None
    """Raised by the next request instead of an answer."""
    settle_failure: Exception | None = None

    def last_parameters(self) -> dict[str, Any]:
        return json.loads(inputs_of(self.requests[-1])["sampling_parameters"][0])

    def _take(self, call: InferenceCall) -> service_pb2.ModelInferRequest:
        request = service_pb2.ModelInferRequest.FromString(call.payload)
        self.calls.append(call)
        self.requests.append(request)
        return request

    def refused(self, call: RefusedCall, error: Exception) -> None:
        self.refusals.append(call)

    def fail_if_told(self) -> None:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure

    def handing_over(self, name: str) -> None:
        self.handed_over.append((name, self.ended[name]))

    @contextlib.asynccontextmanager
    async def infer(self, call: InferenceCall) -> AsyncIterator[Answer]:
        name = call.request_id.hex()
        self.ended[name] = "failed"
        request = self._take(call)
        self.fail_if_told()
        response = answer_of(call.route.deployment, request)
        self.ended[name] = "taken back"
        yield Answer(response.SerializeToString(), 7, 0, partial(self.handing_over, name))
        self.ended[name] = "charged"

    @contextlib.asynccontextmanager
    async def stream(self, call: InferenceCall) -> AsyncIterator[StandInStream]:
        name = call.request_id.hex()
        stream = StandInStream(self._take(call), self, call.resumable, name)
        self.ended[name] = "working"
        try:
            yield stream
        except BaseException:
            charged = stream.settled or (stream.delivered > 0 and not stream.failed)
            self.ended[name] = (
                f"charged {stream.delivered}" if charged and not call.whole else "not charged"
            )
            raise
        self.ended[name] = f"charged {stream.delivered}" if stream.settled else "abandoned"


class StandInStream:
    def __init__(
        self,
        request: service_pb2.ModelInferRequest,
        serving: StandInServing,
        resumable: Resumable | None,
        name: str,
    ) -> None:
        self._request = request
        self._name = name
        self._resumable = resumable
        self._serving = serving
        self._handed = 0
        self.delivered = 0
        self.settled = False
        self.failed = False

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        count = 0
        self._serving.fail_if_told()
        async for text, reason in generate(self._request):
            if isinstance(text, Exception):
                self.failed = True
                raise text
            count += 1
            if self._resumable is not None:
                self._resumable.count(5, count)
            self._handed = count
            yield Chunk(generation_response(text, reason), 5, count)
            self.handed_over()

    def handed_over(self) -> None:
        self.delivered = self._handed

    def holds_back(self) -> None:
        raise AssertionError("nothing of what HTTP's edges get comes last")

    def handing_over(self) -> None:
        self._serving.handing_over(self._name)

    async def settle(self) -> None:
        if self._serving.settle_failure is not None:
            self.failed = True
            failure, self._serving.settle_failure = self._serving.settle_failure, None
            raise failure
        self.settled = True


Piece = tuple[bytes | Exception, str]

LATE_S = 0.5
"""When a late model's first token comes: after two heartbeats."""
PACE_S = 0.005
"""From one token of an endless model to the next."""


async def generate(request: service_pb2.ModelInferRequest) -> AsyncIterator[Piece]:
    """Say the prompt's words back, or do what the prompt commands."""
    inputs = inputs_of(request)
    prompt = inputs["text_input"][0].decode()
    most = json.loads(inputs["sampling_parameters"][0]).get("max_tokens", 10_000)
    if "!late" in prompt:
        await asyncio.sleep(LATE_S)
    if "!fail" in prompt:
        yield ModelFailed("the model gave up"), ""
    if "!hang" in prompt:
        await asyncio.Event().wait()
    for command, pieces in ENDINGS.items():
        if command in prompt:
            async for piece in pieces():
                yield piece, ""
            return
    words = prompt.split()
    for word in words[:most]:
        yield f" {word}".encode(), ""
    yield b"", "length" if len(words) > most else "stop"


async def utf8_pieces() -> AsyncIterator[bytes]:
    for byte in "grüße €😀".encode():
        yield bytes([byte])


async def flood() -> AsyncIterator[bytes]:
    for _ in range(1000):
        yield b"x" * 65536


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b" more"
        await asyncio.sleep(PACE_S)


async def broken() -> AsyncIterator[bytes | Exception]:
    yield b"so far"
    yield ModelFailed("the model gave up half-way")


ENDINGS: dict[str, Callable[[], AsyncIterator[bytes | Exception]]] = {
    "!utf8": utf8_pieces,
    "!flood": flood,
    "!endless": endless,
    "!break": broken,
}


def generation_response(text: bytes, reason: str) -> bytes:
    response = service_pb2.ModelInferResponse(model_name="chatty", model_version="1")
    for name, element in (("text_output", text), ("finish_reason", reason.encode())):
        response.outputs.add(name=name, datatype="BYTES", shape=[1])
        response.raw_output_contents.append(len(element).to_bytes(4, "little") + element)
    return response.SerializeToString()


def inputs_of(request: service_pb2.ModelInferRequest) -> dict[str, Any]:
    names = [tensor.name for tensor in request.inputs]
    values: dict[str, Any] = {}
    for name, spec, raw in zip(names, request.inputs, request.raw_input_contents, strict=True):
        values[name] = deserialize_bytes_tensor(raw) if spec.datatype == "BYTES" else raw
    return values


def answer_of(model: str, request: service_pb2.ModelInferRequest) -> service_pb2.ModelInferResponse:
    response = service_pb2.ModelInferResponse(model_name=model, model_version="1", id=request.id)

    def add(name: str, datatype: str, shape: list[int], raw: bytes) -> None:
        if request.outputs and name not in {output.name for output in request.outputs}:
            return
        response.outputs.add(name=name, datatype=datatype, shape=shape)
        response.raw_output_contents.append(raw)

    values = inputs_of(request)
    first = request.inputs[0]
    if model == "simple":
        a, b = (np.frombuffer(values[name], np.int32) for name in ("INPUT0", "INPUT1"))
        add("OUTPUT0", "INT32", list(first.shape), (a + b).tobytes())
        add("OUTPUT1", "INT32", list(first.shape), (a - b).tobytes())
    elif model == "embedder":
        rows = np.array([[len(text), 1, 0.5, -1] for text in values["text"]], np.float32)
        add("embedding", "FP32", list(rows.shape), rows.tobytes())
        add("num_input_tokens", "INT32", [len(rows)], np.ones(len(rows), np.int32).tobytes())
    else:
        add("OUTPUT0", first.datatype, list(first.shape), request.raw_input_contents[0])
    return response


@dataclass
class RunningEdge:
    """The edge under test."""

    port: int
    serving: StandInServing
    not_ready: list[str]
    store: MemoryStore
    leave: StandInLeave

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def talk(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send raw bytes; return status, headers and body of what comes back until the end."""
        with self.connect() as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
            return read_answer(connection)

    def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own."""
        given = {
            "Host": "busbar",
            "Authorization": f"Bearer {KEY}",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **(headers or {}),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in given.items() if value)
        return self.talk(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body)

    def post_json(self, path: str, document: object) -> tuple[int, dict[str, str], Any]:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        status, headers, answer = self.request("POST", path, body)
        return status, headers, json.loads(answer)


def poll(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait until `condition` holds; fail after the deadline."""
    deadline = time.monotonic() + timeout_s
    tick = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        tick.wait(0.01)


@contextlib.contextmanager
def running(
    limits: HttpLimits, models: frozenset[str] = frozenset(r.deployment for r in ROUTES)
) -> Iterator[RunningEdge]:
    """Run an edge with some of the models, in a thread with an event loop of its own."""
    serving, not_ready = StandInServing(), list[str]()
    store = MemoryStore()
    routes = StandInRoutes(ROUTES, models)
    leave = StandInLeave(routes)
    idempotency = Idempotency(
        store,
        gateway_id="g1",
        run_id="run-2",
        is_gone=lambda _gateway, run: run == "run-1",
        may_ask=leave.check,
    )
    services = Services(serving, StandInKeys(), routes, idempotency, limits, lambda: not_ready)
    ports: list[int] = []
    up = threading.Event()
    loop = uvloop.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        options = server_options(limits)
        async with serve_http(create_app(services), "127.0.0.1", 0, **options) as port:
            ports.append(port)
            up.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert up.wait(10)
    try:
        yield RunningEdge(ports[0], serving, not_ready, store, leave)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
