"""A model that finds the beginning of a prompt in its cache, and says how much of it."""

from __future__ import annotations

from typing import Any

import openai
from busbar_messaging.bundles.sealing import SigningKey
from busbar_runtime.platform import Platform
from harness.bundles import Made, make
from harness.operator import Customer, Operator
from harness.polling import eventually

NAME = "remembering"
INPUT_NANOS, CACHED_NANOS = 1_000, 100
"""Of one token."""
PROMPT = "The clause that every question of this customer begins with: "
MANIFEST = f"""\
name: {NAME}
version: "1"
task: chat
slots: 4
memory_mb: 64
decoupled: true
price_class: {NAME}
usage:
  input_tokens: num_input_tokens
  output_tokens: num_output_tokens
  cached_tokens: num_cached_tokens
chat_template: "{{{{ messages[0].content }}}}"
warmup:
  inputs:
    text_input: {{ datatype: BYTES, shape: [1], data: ["warm"] }}
    return_num_cached_tokens: {{ datatype: BOOL, shape: [1], data: [true] }}
  expect:
    text_output: {{ datatype: BYTES, shape: [1], data: ["done"] }}
"""
_OPTIONS = (
    "stream",
    "exclude_input_in_output",
    *(f"return_{name}" for name in ("finish_reason", "num_input_tokens", "num_output_tokens")),
    "return_num_cached_tokens",
)
_OPTIONAL_INPUTS = "".join(
    f'  {{ name: "{name}", data_type: TYPE_BOOL, dims: [ 1 ], optional: true }},\n'
    for name in _OPTIONS
)
CONFIG = f"""\
name: "{NAME}"
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
input [
{_OPTIONAL_INPUTS}
  {{ name: "sampling_parameters", data_type: TYPE_STRING, dims: [ 1 ], optional: true }},
  {{ name: "text_input", data_type: TYPE_STRING, dims: [ 1 ] }}
]
output [
  {{ name: "text_output", data_type: TYPE_STRING, dims: [ -1 ] }},
  {{ name: "finish_reason", data_type: TYPE_STRING, dims: [ -1 ] }},
  {{ name: "num_input_tokens", data_type: TYPE_UINT32, dims: [ 1 ] }},
  {{ name: "num_output_tokens", data_type: TYPE_UINT32, dims: [ 1 ] }},
  {{ name: "num_cached_tokens", data_type: TYPE_UINT32, dims: [ 1 ] }}
]
instance_group [ {{ kind: KIND_CPU, count: 1 }} ]
"""
MODEL = b'''
"""Reads prompts byte by byte, keeps them, and reads none of their beginnings twice."""

import os

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self._read = set()

    def execute(self, requests):
        for request in requests:
            self._answer(request)

    def _answer(self, request):
        given = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()[0]
        cached = max((len(os.path.commonprefix([given, one])) for one in self._read), default=0)
        self._read.add(given)
        wanted = pb_utils.get_input_tensor_by_name(request, "return_num_cached_tokens")
        stream = pb_utils.get_input_tensor_by_name(request, "stream")
        parts = [(b"done", b"stop")]
        if stream is not None and stream.as_numpy()[0]:
            parts = [(b"do", b"None"), (b"ne", b"stop")]
        sender = request.get_response_sender()
        for text, reason in parts:
            outputs = [
                pb_utils.Tensor("text_output", np.array([text], dtype=np.object_)),
                pb_utils.Tensor("finish_reason", np.array([reason], dtype=np.object_)),
                pb_utils.Tensor("num_input_tokens", np.array([len(given)], dtype=np.uint32)),
                pb_utils.Tensor("num_output_tokens", np.array([len(text)], dtype=np.uint32)),
            ]
            if wanted is not None:
                counted = np.array([cached], dtype=np.uint32)
                outputs.append(pb_utils.Tensor("num_cached_tokens", counted))
            sender.send(pb_utils.InferenceResponse(outputs))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
'''


def bundle(platform: Platform) -> Made:
    files = {"busbar.yaml": MANIFEST.encode(), "config.pbtxt": CONFIG.encode(), "1/model.py": MODEL}
    return make(files).sealed_by(SigningKey.from_pem(platform.secrets.signing_key.encode()))


async def prices_of(operator: Operator, tenant_id: str) -> None:
    """What this tenant pays: by token, and less for those in the cache."""
    per_token = {"input_token": INPUT_NANOS, "cached_token": CACHED_NANOS}
    listed = {name: {"amount_nanos": nanos, "per_units": 1} for name, nanos in per_token.items()}
    classes = {NAME: listed, "default": {"request": {"amount_nanos": 1, "per_units": 1}}}
    await operator.prices(tenant_id, classes)


async def test_cached_tokens_are_shown_and_charged_at_their_own_price(
    platform: Platform, operator: Operator, customer: Customer
) -> None:
    made, path = bundle(platform), f"/admin/v1/deployments/{NAME}"
    await operator.push(made)
    await prices_of(operator, customer.tenant_id)
    await operator.json("scheduler", "PUT", path, json={"bundle": made.digest})
    base_url = platform.endpoints["http"] + "/v1"
    try:
        await eventually(
            lambda: operator.json("scheduler", "GET", path),
            within_s=60,
            what=f"{NAME} is ready",
            until=lambda view: view["status"] == "ready",
        )
        await operator.serves(NAME)
        async with openai.AsyncOpenAI(base_url=base_url, api_key=customer.key) as client:
            first = await client.completions.create(model=NAME, prompt=PROMPT + "when?")
            stream = await client.chat.completions.create(
                model=NAME,
                messages=[{"role": "user", "content": PROMPT + "where?"}],
                stream=True,
                stream_options={"include_usage": True},
            )
            streamed = [chunk.usage async for chunk in stream if chunk.usage]
        records: list[dict[str, Any]] = await eventually(
            lambda: operator.usage(customer.tenant_id),
            within_s=20,
            what="both charges",
            until=lambda found: len(found) == 2,
        )
        rated = [await operator.usage_of(one["request_id"]) for one in reversed(records)]
    finally:
        await operator.call("scheduler", "DELETE", path)

    asked, found = (len(PROMPT + "when?"), len(PROMPT + "where?")), (0, len(PROMPT + "whe"))
    shown = [one for one in (first.usage, *streamed) if one is not None]
    assert tuple(one.prompt_tokens for one in shown) == asked
    assert (
        tuple(one.prompt_tokens_details.cached_tokens for one in shown if one.prompt_tokens_details)
        == found
    )
    lines = [
        {line["component"]: line["quantity"] for line in one["lines"] if line["quantity"]}
        for one in rated
    ]
    whole, part = asked[0], asked[1] - found[1]
    assert lines == [{"input_token": whole}, {"input_token": part, "cached_token": found[1]}]
    assert [one["amount_nanos"] for one in rated] == [
        whole * INPUT_NANOS,
        part * INPUT_NANOS + found[1] * CACHED_NANOS,
    ]
