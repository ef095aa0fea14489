"""The demo models at a real Triton, through tritonclient, with numbers compared."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import yaml
from busbar_runtime.home import REPO, Home
from busbar_runtime.triton import ensure_triton
from busbar_runtime.triton_probe import TritonServer, started
from harness.polling import quickest_s

DEMO = REPO / "deploy" / "demo"
NAMES = sorted(manifest.parent.name for manifest in (DEMO / "models").glob("*/busbar.yaml"))
ANSWER_TIMEOUT_S = 60.0
IDLE_LOOKS = 6
QUESTION = "User: What is a lease?\nAssistant: "
RETURN_ALL = {
    f"return_{name}": True for name in ("finish_reason", "num_input_tokens", "num_output_tokens")
}

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]
Outputs = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def server(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    install = ensure_triton(Home.of().cache)
    log = tmp_path_factory.mktemp("triton") / "triton.log"
    with started(install.argv, repository=demo_models, log=log) as server:
        with ThreadPoolExecutor() as pool:
            list(pool.map(server.load, NAMES))
        yield server


@dataclass
class Stream:
    """One gRPC stream to a decoupled model."""

    client: grpcclient.InferenceServerClient
    model: str
    came: queue.SimpleQueue[tuple[Any, Any]] = field(default_factory=queue.SimpleQueue)

    def ask(self, inputs: dict[str, Any]) -> None:
        tensors = [tensor(name, value) for name, value in inputs.items()]
        self.client.async_stream_infer(self.model, tensors, enable_empty_final_response=True)

    def next(self) -> tuple[Outputs, bool]:
        """One response and whether it is the last; raises what the server answered instead."""
        result, error = self.came.get(timeout=ANSWER_TIMEOUT_S)
        if error is not None:
            raise error
        response = result.get_response()
        final = response.parameters["triton_final_response"].bool_param
        return {out.name: result.as_numpy(out.name) for out in response.outputs}, final

    def rest(self) -> list[Outputs]:
        """Every response with something in it, until the last."""
        found: list[Outputs] = []
        final = False
        while not final:
            outputs, final = self.next()
            found += [outputs] if outputs else []
        return found


@pytest.fixture
def client(server: TritonServer) -> Iterator[grpcclient.InferenceServerClient]:
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        yield client


@pytest.fixture
def stream_to(server: TritonServer) -> Iterator[Callable[[str], Stream]]:
    opened: list[Stream] = []

    def make(model: str) -> Stream:
        stream = Stream(grpcclient.InferenceServerClient(server.grpc_address), model)
        stream.client.start_stream(callback=lambda result, error: stream.came.put((result, error)))
        opened.append(stream)
        return stream

    yield make
    for stream in opened:
        stream.client.close()


StreamTo = Callable[[str], Stream]


def tensor(name: str, value: Any) -> grpcclient.InferInput:
    """An input from an array, or one element from a bool, a string or bytes."""
    if isinstance(value, str | bytes):
        value = np.array([value if isinstance(value, bytes) else value.encode()], dtype=np.object_)
    array = np.array([value]) if isinstance(value, bool) else np.asarray(value)
    found = grpcclient.InferInput(name, list(array.shape), datatype_of(array))
    found.set_data_from_numpy(array)
    return found


def datatype_of(array: np.ndarray[Any, Any]) -> str:
    kinds = {"object": "BYTES", "bool": "BOOL", "float32": "FP32"}
    name = str(array.dtype.name)
    return kinds.get(name, name.upper())


def as_array(stated: dict[str, Any]) -> np.ndarray[Any, Any]:
    if stated["datatype"] == "BYTES":
        texts = np.array([text.encode() for text in stated["data"]], dtype=np.object_)
        return texts.reshape(stated["shape"])
    kinds = {"FP32": "float32", "BOOL": "bool"}
    kind = kinds.get(stated["datatype"], stated["datatype"].lower())
    return np.array(stated["data"], dtype=kind).reshape(stated["shape"])


def infer(client: grpcclient.InferenceServerClient, model: str, **inputs: Any) -> Any:
    return client.infer(model, [tensor(name, value) for name, value in inputs.items()])


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_answers_its_own_warm_up(
    name: str,
    demo_models: Path,
    client: grpcclient.InferenceServerClient,
    stream_to: StreamTo,
) -> None:
    manifest = yaml.safe_load((demo_models / name / "busbar.yaml").read_text())
    inputs = {key: as_array(value) for key, value in manifest["warmup"]["inputs"].items()}
    if manifest["decoupled"]:
        stream = stream_to(name)
        stream.ask(inputs)
        (outputs,) = stream.rest()
    else:
        result = infer(client, name, **inputs)
        outputs = {key: result.as_numpy(key) for key in manifest["warmup"]["expect"]}

    assert re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", name)
    assert manifest["name"] == name
    for key, expected in manifest["warmup"]["expect"].items():
        wanted = as_array(expected)
        assert outputs[key].shape == wanted.shape
        if wanted.dtype == np.object_:
            assert outputs[key].tolist() == wanted.tolist()
        else:
            np.testing.assert_allclose(outputs[key], wanted, rtol=0, atol=expected["tolerance"])


def embed(client: grpcclient.InferenceServerClient, *texts: str, **more: Any) -> Any:
    array = np.array([text.encode() for text in texts], dtype=np.object_)
    return infer(client, "all-minilm-l6-v2", text=array, **more)


def test_sentences_that_mean_the_same_are_closer(client: grpcclient.InferenceServerClient) -> None:
    texts = ("A cat sits on the mat", "A kitten rests on a rug", "Revenue grew by 4 % this quarter")
    vectors = embed(client, *texts).as_numpy("embedding")
    cosines = vectors @ vectors.T

    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert cosines[0, 1] > 0.5
    assert abs(cosines[0, 2]) < 0.2
    assert abs(cosines[1, 2]) < 0.2


def test_an_embedding_does_not_depend_on_its_neighbours(
    client: grpcclient.InferenceServerClient,
) -> None:
    texts = [
        "short",
        "a rather longer sentence about nothing " * 8,
        "naïve café — 東京 🚀",
        "",
    ] * 12
    together = embed(client, *texts)
    alone = [embed(client, text) for text in texts[:4]]

    np.testing.assert_allclose(
        together.as_numpy("embedding")[:4],
        np.concatenate([one.as_numpy("embedding") for one in alone]),
        atol=1e-5,
    )
    assert together.as_numpy("num_input_tokens")[:4].tolist() == [
        one.as_numpy("num_input_tokens")[0] for one in alone
    ]


def test_a_text_that_is_too_long_is_refused_unless_truncation_is_asked_for(
    client: grpcclient.InferenceServerClient,
) -> None:
    long = "word " * 300
    with pytest.raises(grpcclient.InferenceServerException, match=r"text\[1\] has 302 tokens"):
        embed(client, "fine", long, truncate=False)

    assert embed(client, long, truncate=True).as_numpy("num_input_tokens").tolist() == [256]


@pytest.mark.parametrize(
    "texts", [np.array([], dtype=np.object_), np.array([b"\xff\xfe"], dtype=np.object_)]
)
def test_texts_that_cannot_be_embedded_are_the_callers_error(
    client: grpcclient.InferenceServerClient, texts: np.ndarray[Any, Any]
) -> None:
    with pytest.raises(grpcclient.InferenceServerException) as refusal:
        infer(client, "all-minilm-l6-v2", text=texts)

    assert refusal.value.status() == "StatusCode.INVALID_ARGUMENT"


def chat(to: Stream, sampling: dict[str, Any], **more: Any) -> list[Outputs]:
    defaults = {"text_input": QUESTION, "sampling_parameters": json.dumps(sampling)}
    to.ask(defaults | RETURN_ALL | more)
    return to.rest()


def text_of(responses: list[Outputs]) -> str:
    return b"".join(response["text_output"][0] for response in responses).decode()


def tokens_of(responses: list[Outputs]) -> int:
    return sum(int(response["num_output_tokens"][0]) for response in responses)


def test_a_streamed_answer_is_the_whole_answer(stream_to: StreamTo) -> None:
    stream = stream_to("tiny-lm")
    sampling = {"temperature": 0, "max_tokens": 60, "ignore_eos": True}
    parts = chat(stream, sampling, stream=True)
    (whole,) = chat(stream, sampling, stream=False, exclude_input_in_output=True)
    (echoed,) = chat(stream, sampling)
    reasons = [part["finish_reason"][0] for part in parts]

    assert len(parts) > 5
    assert text_of(parts) == text_of([whole])
    assert text_of([echoed]) == QUESTION + text_of([whole])
    assert tokens_of(parts) == tokens_of([whole]) == 60
    assert {int(part["num_input_tokens"][0]) for part in parts} == {len(QUESTION)}
    assert reasons == [b"None"] * (len(parts) - 1) + [b"length"]


def test_the_same_seed_gives_the_same_answer_whoever_else_asks(stream_to: StreamTo) -> None:
    sampling = {"temperature": 0.9, "top_p": 0.9, "seed": 5, "max_tokens": 80}
    alone = text_of(chat(stream_to("tiny-lm"), sampling, stream=True))
    streams = [stream_to("tiny-lm") for _ in range(6)]
    with ThreadPoolExecutor(len(streams)) as pool:
        answers = list(pool.map(lambda one: text_of(chat(one, sampling, stream=True)), streams))
    others = {
        text_of(chat(streams[0], sampling | {"seed": seed, "temperature": 1.5}, stream=True))
        for seed in range(6)
    }

    assert set(answers) == {alone}
    assert len(others) > 1


def test_texts_take_turns(stream_to: StreamTo) -> None:
    long, short = stream_to("tiny-lm"), stream_to("tiny-lm")
    many = {"max_tokens": 800, "ignore_eos": True}
    long.ask({"text_input": "x", "stream": True, "sampling_parameters": json.dumps(many)})
    long.next()
    chat(short, {"max_tokens": 8, "ignore_eos": True}, stream=True)

    assert long.came.qsize() < 150
    assert len(long.rest()) > 150


def test_every_response_is_whole_characters(stream_to: StreamTo) -> None:
    wild = {"temperature": 5, "seed": 3, "max_tokens": 300, "ignore_eos": True}
    parts = chat(stream_to("tiny-lm"), wild, stream=True)
    texts = [part["text_output"][0].decode() for part in parts]

    assert any(ord(character) > 127 for character in "".join(texts))
    assert tokens_of(parts) == 300


def test_an_answer_ends_before_its_stop_string(stream_to: StreamTo) -> None:
    stream = stream_to("tiny-lm")
    sampling = {"temperature": 0, "max_tokens": 60, "ignore_eos": True}
    free = text_of(chat(stream, sampling, stream=True))
    stop = free[20:23]
    parts = chat(stream, sampling | {"stop": [stop, "never this"]}, stream=True)

    assert text_of(parts) == free[: free.index(stop)]
    assert parts[-1]["finish_reason"][0] == b"stop"


def test_an_answer_ends_where_the_context_does(stream_to: StreamTo) -> None:
    sampling = {"max_tokens": 100, "ignore_eos": True}
    parts = chat(stream_to("tiny-lm"), sampling, text_input="x" * 1020, stream=True)

    assert tokens_of(parts) == 4
    assert parts[-1]["finish_reason"][0] == b"length"


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"sampling_parameters": '{"best_of": 2}'}, "unknown sampling parameter 'best_of'"),
        ({"sampling_parameters": "{"}, "not JSON"),
        ({"sampling_parameters": "[1]"}, "must be a JSON object"),
        ({"sampling_parameters": '{"max_tokens": -1}'}, "max_tokens is -1"),
        ({"sampling_parameters": '{"max_tokens": 1.5}'}, "max_tokens is 1.5"),
        ({"sampling_parameters": '{"temperature": NaN}'}, "temperature is nan"),
        ({"sampling_parameters": '{"temperature": -0.1}'}, "temperature is -0.1"),
        ({"sampling_parameters": '{"top_p": 0}'}, "top_p is 0"),
        ({"sampling_parameters": '{"stop": ["a", ""]}'}, "stop must be"),
        ({"sampling_parameters": '{"ignore_eos": 1}'}, "ignore_eos is 1"),
        ({"text_input": "x" * 1024}, "the context is 1024"),
        ({"text_input": b"\xc3"}, "not valid UTF-8"),
        ({"text_input": ""}, "text_input is empty"),
        ({"stream": True, "exclude_input_in_output": False}, "exclude_input_in_output"),
    ],
)
def test_what_cannot_be_generated_is_refused_with_the_reason(
    stream_to: StreamTo, inputs: dict[str, Any], reason: str
) -> None:
    stream = stream_to("tiny-lm")
    stream.ask({"text_input": QUESTION} | inputs)

    with pytest.raises(grpcclient.InferenceServerException, match=re.escape(reason)):
        stream.next()


async def test_an_abandoned_text_is_no_longer_generated(
    server: TritonServer, stream_to: StreamTo, eventually: Eventually
) -> None:
    streams = [stream_to("tiny-lm") for _ in range(3)]
    for stream in streams:
        chat_on = {"max_tokens": 1000, "ignore_eos": True}
        stream.ask({"text_input": "x", "stream": True, "sampling_parameters": json.dumps(chat_on)})
    for stream in streams:
        stream.next()
    stub = stub_of(server, "tiny-lm")
    for stream in streams:
        stream.client.stop_stream(cancel_requests=True)
    spent = [cpu_ticks(stub)]

    def is_idle() -> bool:
        spent.append(cpu_ticks(stub))
        return len(spent) > IDLE_LOOKS and spent[-1] == spent[-IDLE_LOOKS]

    await eventually(is_idle)

    assert spent[-1] - spent[0] < os.sysconf("SC_CLK_TCK") / 2  # three texts take ten times that


def stub_of(server: TritonServer, model: str) -> int:
    """The process that runs this model."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        words = path.read_bytes().split(b"\0") if path.exists() else []
        if any(f"/models/{model}/".encode() in word for word in words):
            status = path.with_name("status").read_text()
            if f"PPid:\t{server.pid}\n" in status:
                return int(path.parent.name)
    raise LookupError(f"{model} has no process under {server.pid}")


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("invalid_arg", "INVALID_ARGUMENT"),
        ("not_found", "NOT_FOUND"),
        ("unavailable", "UNAVAILABLE"),
        ("internal", "INTERNAL"),
        ("unknown", "UNKNOWN"),
        ("no such fault", "INVALID_ARGUMENT"),
    ],
)
def test_a_fault_asked_for_comes_back_as_its_status(
    client: grpcclient.InferenceServerClient, fault: str, status: str
) -> None:
    with pytest.raises(grpcclient.InferenceServerException) as failed:
        infer(client, "slow-echo", INPUT0=np.ones(2, dtype=np.float32), fault=fault)

    assert failed.value.status() == f"StatusCode.{status}"


async def test_slow_requests_wait_side_by_side(server: TritonServer) -> None:
    def ask(value: int) -> float:
        with grpcclient.InferenceServerClient(server.grpc_address) as client:
            values, delay = np.full(1, value, dtype=np.float32), np.full(1, 400, dtype=np.int32)
            result = infer(client, "slow-echo", INPUT0=values, delay_ms=delay)
            return float(result.as_numpy("OUTPUT0")[0])

    async def all_at_once() -> float:
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            answers = await asyncio.to_thread(lambda: list(pool.map(ask, range(8))))
        assert answers == list(range(8))
        return time.monotonic() - began

    half_of_one_by_one_s = 8 * 0.4 / 2
    assert await quickest_s(all_at_once, under_s=half_of_one_by_one_s) < half_of_one_by_one_s


def repeat_of(*values: int) -> dict[str, np.ndarray[Any, Any]]:
    zeros = np.zeros(len(values), dtype=np.uint32)
    return {"IN": np.array(values, dtype=np.int32), "DELAY": zeros, "WAIT": zeros[:1]}


def test_repeat_answers_once_per_element_in_order(stream_to: StreamTo) -> None:
    stream = stream_to("repeat")
    stream.ask(repeat_of(5, 6, 7))
    came = [(int(out["OUT"][0]), int(out["IDX"][0])) for out in stream.rest()]

    assert came == [(5, 0), (6, 1), (7, 2)]


def test_repeat_fails_in_the_middle_when_asked(stream_to: StreamTo) -> None:
    stream = stream_to("repeat")
    stream.ask(repeat_of(5, -1, 7))
    outputs, final = stream.next()

    assert int(outputs["OUT"][0]) == 5
    assert not final
    with pytest.raises(grpcclient.InferenceServerException, match="failed as asked at 1"):
        stream.next()


def test_simple_string_refuses_what_is_no_number(client: grpcclient.InferenceServerClient) -> None:
    words = np.array([[b"1"] * 15 + [b"one"]], dtype=np.object_)

    with pytest.raises(grpcclient.InferenceServerException, match="decimal"):
        infer(client, "simple-string", INPUT0=words, INPUT1=words)


def test_requests_batched_together_get_their_own_answers(server: TritonServer) -> None:
    def ask(value: int) -> bool:
        with grpcclient.InferenceServerClient(server.grpc_address) as client:
            values = np.full((1, 16), 1.5 * value, dtype=np.float32)
            result = infer(client, "echo-fp32-batched", INPUT0=values)
            return bool(np.array_equal(result.as_numpy("OUTPUT0"), values))

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(64)))
