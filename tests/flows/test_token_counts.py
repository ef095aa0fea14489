"""Tokens are charged although the customer did not ask the model to count them."""

from __future__ import annotations

import struct
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as triton_grpc
import tritonclient.http.aio as triton_http
from busbar_runtime.platform import Platform
from harness.operator import Customer, Operator
from harness.polling import eventually
from tritonclient.grpc import service_pb2

PROMPT = b"Where does the money live?"
ANSWER_TOKENS = 20
SAMPLING = b'{"max_tokens": %d, "ignore_eos": true}' % ANSWER_TOKENS
COUNTS = ("num_input_tokens", "num_output_tokens")
SENTENCE = b"A cat sleeps on the sofa."
SENTENCE_TOKENS = 9
"""Six words, the full stop, [CLS] and [SEP]."""


def generation(
    *, typed: bool, stream: bool, flags: dict[str, bool], outputs: tuple[str, ...]
) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="tiny-lm", id="mine")
    given: dict[str, bytes | bool] = {
        "text_input": PROMPT,
        "sampling_parameters": SAMPLING,
        "stream": stream,
        **flags,
    }
    for name, value in given.items():
        datatype = "BYTES" if isinstance(value, bytes) else "BOOL"
        tensor = request.inputs.add(name=name, datatype=datatype, shape=[1])
        if typed and isinstance(value, bytes):
            tensor.contents.bytes_contents.append(value)
        elif typed:
            tensor.contents.bool_contents.append(bool(value))
        elif isinstance(value, bytes):
            request.raw_input_contents.append(struct.pack("<I", len(value)) + value)
        else:
            request.raw_input_contents.append(bytes([value]))
    for name in outputs:
        request.outputs.add(name=name)
    return request


async def answers_to(
    platform: Platform, customer: Customer, request: service_pb2.ModelInferRequest
) -> list[service_pb2.ModelInferResponse]:
    metadata = (("authorization", f"Bearer {customer.key}"),)
    async with grpc.aio.insecure_channel(platform.endpoints["grpc"]) as channel:
        open_stream: Any = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        call = open_stream(iter([request.SerializeToString()]), metadata=metadata, timeout=30)
        answers = [service_pb2.ModelStreamInferResponse.FromString(part) async for part in call]
    assert [answer.error_message for answer in answers if answer.error_message] == []
    return [answer.infer_response for answer in answers]


async def only_record(operator: Operator, customer: Customer) -> dict[str, Any]:
    records = await eventually(
        lambda: operator.usage(customer.tenant_id), within_s=30, what="the charge"
    )
    assert len(records) == 1
    return records[0]


@pytest.mark.parametrize("typed", [False, True], ids=["raw", "typed"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("flags", "outputs", "seen"),
    [
        ({}, (), set[str]()),
        ({f"return_{name}": False for name in COUNTS}, (), set[str]()),
        ({}, ("text_output",), set[str]()),
        ({f"return_{name}": True for name in COUNTS}, ("text_output",), set[str]()),
        ({"return_num_output_tokens": True}, (), {"num_output_tokens"}),
        ({f"return_{name}": True for name in COUNTS}, (), set(COUNTS)),
    ],
    ids=["absent", "refused", "other-outputs", "asked-but-not-named", "one", "both"],
)
async def test_a_generation_is_charged_by_its_tokens_and_shows_only_what_was_asked_for(
    platform: Platform,
    operator: Operator,
    customer: Customer,
    *,
    typed: bool,
    stream: bool,
    flags: dict[str, bool],
    outputs: tuple[str, ...],
    seen: set[str],
) -> None:
    request = generation(typed=typed, stream=stream, flags=flags, outputs=outputs)
    answers = await answers_to(platform, customer, request)

    record = await only_record(operator, customer)
    assert {tensor.name for answer in answers for tensor in answer.outputs} == {
        "text_output",
        *seen,
    }
    assert all(len(answer.outputs) == len(answer.raw_output_contents) for answer in answers)
    assert (len(answers) > 1) is stream
    assert record["input_tokens"] == len(PROMPT)
    assert record["output_tokens"] == ANSWER_TOKENS
    assert record["request_bytes"] == request.ByteSize()
    assert record["response_bytes"] == sum(answer.ByteSize() for answer in answers)
    lines = (await operator.usage_of(record["request_id"]))["lines"]
    charged = {line["component"]: line["quantity"] for line in lines if line["amount_nanos"]}
    assert charged["input_token"] == len(PROMPT)
    assert charged["output_token"] == ANSWER_TOKENS


@pytest.mark.parametrize("over", ["http", "grpc"])
async def test_embeddings_are_charged_by_their_tokens_when_only_the_vectors_are_asked_for(
    platform: Platform, operator: Operator, customer: Customer, over: str
) -> None:
    module: Any = triton_http if over == "http" else triton_grpc
    address = platform.endpoints[over].removeprefix("http://")
    text = module.InferInput("text", [1], "BYTES")
    text.set_data_from_numpy(np.array([SENTENCE], dtype=object))
    async with module.InferenceServerClient(address) as client:
        answer = await client.infer(
            "all-minilm-l6-v2",
            [text],
            outputs=[module.InferRequestedOutput("embedding")],
            headers={"authorization": f"Bearer {customer.key}"},
        )

    record = await only_record(operator, customer)
    assert answer.as_numpy("embedding").shape[-1] == 384
    assert answer.as_numpy("num_input_tokens") is None
    assert record["input_tokens"] == SENTENCE_TOKENS
