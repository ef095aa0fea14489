"""What must hold of the HTTP edge's translations for every input, not only for examples."""

from __future__ import annotations

import contextlib
import json
import math
import time
import zlib
from typing import Any

import numpy as np
import pytest
from busbar_gateway.adapters.http.kserve_elements import (
    decode_elements,
    encode_elements,
    join_bytes_elements,
    split_bytes_elements,
)
from busbar_gateway.adapters.http.kserve_request import header_length, parse_infer_request
from busbar_gateway.adapters.http.limits import compress, decompress
from busbar_gateway.adapters.http.openai_schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    parse_request,
)
from busbar_gateway.adapters.http.prompts import RENDER_CPU_S_MAX, render_prompt
from busbar_gateway.domain.failures import InvalidInput, ModelFailed, PayloadTooLarge
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats(width=32) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("INPUT0") | JSON,
        "shape": st.lists(st.integers(0, 4), max_size=3) | JSON,
        "datatype": st.sampled_from(["FP32", "INT8", "BOOL", "BYTES", "FP16"]) | JSON,
        "data": JSON,
        "parameters": st.fixed_dictionaries(
            {}, optional={"binary_data_size": st.integers(-1, 20) | JSON, "binary_data": JSON}
        )
        | JSON,
    },
)
INFER = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, max_size=3) | JSON},
    optional={
        "id": st.text() | JSON,
        "parameters": JSON,
        "outputs": st.lists(TENSOR, max_size=2) | JSON,
    },
)
FIELDS: dict[Any, st.SearchStrategy[Any]] = {
    kind: st.fixed_dictionaries(
        {"model": st.text(min_size=1) | JSON},
        optional={name: JSON for name in kind.model_fields if name != "model"},
    )
    for kind in (ChatCompletionRequest, CompletionRequest, EmbeddingRequest)
}


@given(document=INFER, tail=st.binary(max_size=24), length=st.none() | st.binary(max_size=5))
def test_any_inference_body_is_translated_or_refused(
    document: Any, tail: bytes, length: bytes | None
) -> None:
    text = written(document)
    body = text + tail
    length = str(len(text)).encode() if length is None else length
    with contextlib.suppress(InvalidInput):
        request = parse_infer_request(body, header_length(length, len(body)), model="m")
        message = service_pb2.ModelInferRequest.FromString(request.payload())
        assert len(request.inputs) <= len(message.inputs)
        assert list(message.raw_input_contents) == [bytes(t.raw or b"") for t in request.inputs]


@given(body=st.binary(max_size=200))
def test_any_bytes_are_refused_or_translated(body: bytes) -> None:
    with contextlib.suppress(InvalidInput):
        request = parse_infer_request(body, len(body), model="m")
        assert service_pb2.ModelInferRequest.FromString(request.payload()).model_name == "m"


@pytest.mark.parametrize("kind", FIELDS)
@given(data=st.data())
def test_any_openai_body_is_taken_or_refused_with_a_field(kind: Any, data: st.DataObject) -> None:
    body = written(data.draw(FIELDS[kind]))
    with contextlib.suppress(InvalidInput):
        assert parse_request(kind, body).model


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_bytes_elements_survive(elements: list[bytes]) -> None:
    assert split_bytes_elements(join_bytes_elements(elements)) == elements


@given(st.binary(max_size=40))
def test_bytes_elements_are_split_or_refused(raw: bytes) -> None:
    try:
        elements = split_bytes_elements(raw)
    except ValueError:
        return
    assert join_bytes_elements(elements) == raw


@given(st.lists(st.integers(0, 3), max_size=3), st.data())
def test_numbers_survive_flat_and_nested(shape: list[int], data: st.DataObject) -> None:
    count = math.prod(shape)
    values = data.draw(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=count, max_size=count))
    nested = np.array(values, np.int32).reshape(shape).tolist() if shape else values

    flat = encode_elements("x", "INT32", shape, values)
    assert flat == encode_elements("x", "INT32", shape, nested)
    assert list(decode_elements("x", "INT32", flat)) == values


@given(st.binary(max_size=2000), st.sampled_from(["gzip", "deflate"]))
def test_compression_is_undone_within_the_limit(body: bytes, encoding: str) -> None:
    packed = compress(body, encoding)

    assert decompress(packed, encoding, len(body)) == body
    if body:
        with pytest.raises(PayloadTooLarge):
            decompress(packed, encoding, len(body) - 1)


@given(st.binary(max_size=100), st.sampled_from(["gzip", "deflate"]))
def test_what_is_not_compressed_is_refused(body: bytes, encoding: str) -> None:
    try:
        plain = decompress(body, encoding, 10_000)
    except (InvalidInput, PayloadTooLarge):
        return
    assert plain == zlib.decompress(body, 47)


MESSAGES = [{"role": "user", "content": "{{ 7 * 7 }}"}]


def test_messages_are_data_to_a_template() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"

    assert render_prompt(template, MESSAGES, limit_bytes=100) == "{{ 7 * 7 }}"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ undefined.attribute }}",
        "{% if %}",
        "{{ 1 / 0 }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_template_that_breaks_or_breaks_out_is_the_models_failure(template: str) -> None:
    with pytest.raises(ModelFailed):
        render_prompt(template, MESSAGES, limit_bytes=100)


ENDLESS = {
    "loops": "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
    "macros": "{% macro twice(n) %}{% if n %}{{ twice(n - 1) }}{{ twice(n - 1) }}{% endif %}"
    "{% endmacro %}{{ twice(30) }}",
    "text": "{% set all = namespace(x='x') %}{% for _ in range(90000) %}"
    "{% set all.x = (all.x ~ 'xxxxxxxx').replace('x', 'y') %}{% endfor %}",
}


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
def test_a_template_that_does_not_end_is_broken_off_and_left_alone(template: str) -> None:
    began_s = time.process_time()
    with pytest.raises(ModelFailed, match="took longer than 250 ms"):
        render_prompt(template, MESSAGES, limit_bytes=1000)
    first_s = time.process_time() - began_s
    for _ in range(100):
        with pytest.raises(ModelFailed, match="took longer than 250 ms"):
            render_prompt(template, MESSAGES, limit_bytes=1000)
    others_s = time.process_time() - began_s - first_s
    sound = render_prompt("{{ messages[0].content }}", MESSAGES, limit_bytes=100)

    assert sound == "{{ 7 * 7 }}"
    assert first_s > RENDER_CPU_S_MAX / 2
    assert others_s < first_s


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10 ** 12 }}",
        "{{ [1] * 1000000000000 }}",
        "{{ 1000000000000 * 'x' }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ {} * 3 }}",
        "{{ none ** 2 }}",
        "{% macro on() %}{{ on() }}{% endmacro %}{{ on() }}",
    ],
)
def test_no_single_step_of_a_template_takes_any_time_and_memory(template: str) -> None:
    with pytest.raises(ModelFailed, match="could not be rendered"):
        render_prompt(template, MESSAGES, limit_bytes=100)


def test_arithmetic_of_templates_works() -> None:
    assert render_prompt("{{ 2 ** 3 * 4 }}{{ '-' * 3 }}", [], limit_bytes=100) == "32---"


def test_a_prompt_that_grows_without_end_is_cut_off() -> None:
    with pytest.raises(PayloadTooLarge):
        render_prompt("{% for i in range(99999) %}xxxx{% endfor %}", MESSAGES, limit_bytes=1000)


def written(document: Any) -> bytes:
    """JSON as a careless client writes it, with NaN, surrogates and endless integers."""
    return json.dumps(document).encode()
