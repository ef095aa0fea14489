"""How much of a request is text that the model reads: its tokens are guessed from that alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from busbar_gateway.adapters.http.kserve_elements import join_bytes_elements
from busbar_gateway.adapters.token_counts import text_bytes
from http_harness import ROUTES
from tritonclient.grpc import service_pb2

BY_NAME = {route.deployment: route for route in ROUTES}
PROMPT = "user: é\nassistant:"


@pytest.mark.parametrize(
    ("path", "body", "size"),
    [
        (
            "/v1/chat/completions",
            {"model": "chatty", "messages": [{"role": "user", "content": "é"}], "max_tokens": 9},
            len(PROMPT.encode()),
        ),
        (
            "/v1/chat/completions",
            {"model": "chatty", "messages": [{"role": "user", "content": "é"}], "stream": True},
            len(PROMPT.encode()),
        ),
        ("/v1/completions", {"model": "chatty", "prompt": "hello"}, 5),
        ("/v1/embeddings", {"model": "embedder", "input": ["one", "three"]}, 3 + 5 + 2 * 4),
    ],
    ids=["chat", "stream", "completion", "embeddings"],
)
def test_only_what_the_model_reads_counts_as_text(
    edge: Any, path: str, body: dict[str, Any], size: int
) -> None:
    edge.request("POST", path, json.dumps(body).encode())

    call = edge.serving.calls[-1]
    assert call.text_bytes == size
    assert len(call.payload) > size


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(
    ("model", "name", "size"), [("chatty", "text_input", 5), ("embedder", "text", 5)]
)
def test_text_is_found_among_tensors(model: str, name: str, size: int, *, raw: bool) -> None:
    message: Any = service_pb2.ModelInferRequest(model_name=model)
    for tensor, value in ((name, b"hello"), ("sampling_parameters", b'{"seed": 1}')):
        if tensor != name and model != "chatty":
            continue
        given = message.inputs.add(name=tensor, datatype="BYTES", shape=[1])
        if raw:
            message.raw_input_contents.append(join_bytes_elements([value]))
        else:
            given.contents.bytes_contents.append(value)

    assert text_bytes(BY_NAME[model], message) == size + 4 * raw


def test_of_other_models_nothing_tells_what_is_text() -> None:
    message: Any = service_pb2.ModelInferRequest(model_name="echo-bytes")
    message.inputs.add(name="INPUT0", datatype="BYTES", shape=[1])
    message.raw_input_contents.append(join_bytes_elements([b"hello"]))

    assert text_bytes(BY_NAME["echo-bytes"], message) == 0
