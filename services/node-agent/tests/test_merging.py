"""Requests as one: what each caller gets is what it would have got alone."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from math import ceil, prod
from typing import Any

import pytest
from busbar_node_agent.adapters.batches import Batches, batching
from busbar_node_agent.domain.merging import BYTES_MAX, TEXTS_MAX, Ask, Batching, cut, groups, holds
from busbar_node_agent.domain.tensors import TensorMalformed
from busbar_node_agent.usecases.merge import Unsplittable
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2, service_pb2

Request = service_pb2.ModelInferRequest
Response = service_pb2.ModelInferResponse
Config = model_config_pb2.ModelConfig

WIDTHS = {"BOOL": 1, "INT8": 1, "BF16": 2, "FP16": 2, "UINT32": 4, "FP32": 4, "INT64": 8}
DATATYPES = st.sampled_from([*WIDTHS, "BYTES"])


def _data(datatype: str, count: int) -> st.SearchStrategy[bytes]:
    if datatype != "BYTES":
        size = count * WIDTHS[datatype]
        return st.binary(min_size=size, max_size=size)
    texts = st.lists(st.binary(max_size=5), min_size=count, max_size=count)
    return texts.map(lambda each: b"".join(struct.pack("<I", len(text)) + text for text in each))


@st.composite
def _requests(draw: st.DrawFn) -> list[Request]:
    """What callers of one model may send, of few kinds, so that some can go together."""
    kinds = draw(
        st.lists(
            st.lists(
                st.tuples(DATATYPES, st.lists(st.integers(0, 3), max_size=2)),
                min_size=1,
                max_size=2,
            ),
            min_size=1,
            max_size=2,
        )
    )
    made: list[Request] = []
    for number in range(draw(st.integers(1, 8))):
        request = Request(model_name="m", id=draw(st.sampled_from(["", f"r{number}", "same"])))
        request.model_version = draw(st.sampled_from(["", "", "2"]))
        rows = draw(st.integers(1, 3))
        for index, (datatype, dims) in enumerate(draw(st.sampled_from(kinds))):
            shape = [rows, *dims]
            request.inputs.add(name=f"in{index}", datatype=datatype, shape=shape)
            request.raw_input_contents.append(draw(_data(datatype, prod(shape))))
        if draw(st.booleans()):
            request.outputs.add(name="in0")
        made.append(request)
    return made


def _answer(data: bytes) -> bytes:
    """What a batchable model says: each input, or each that was asked for, as it is."""
    request = Request.FromString(data)
    answer = Response(model_name="m", model_version=request.model_version or "1", id=request.id)
    wanted = {output.name for output in request.outputs}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if not wanted or tensor.name in wanted:
            answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            answer.raw_output_contents.append(raw)
    return answer.SerializeToString()


@given(_requests(), st.integers(2, 8), st.integers(1, 3))
def test_each_gets_from_a_group_what_it_would_have_got_alone(
    requests: list[Request], rows_max: int, instances: int
) -> None:
    batches, batching_ = Batches(), Batching(rows_max, instances)
    asks = [batches.read(each.SerializeToString()) for each in requests]
    merged = groups(asks, batching_)

    assert sorted(index for group in merged for index in group) == list(range(len(requests)))
    for group in merged:
        members = [ask for index in group if (ask := asks[index]) is not None]
        assert len(members) == len(group)
        assert len(group) == 1 or sum(each.rows for each in members) <= rows_max
        assert len(group) <= ceil(len(requests) / instances)
        answers = batches.split(_answer(batches.join(members)), members)
        for index, answer in zip(group, answers, strict=True):
            alone = _answer(requests[index].SerializeToString())
            assert Response.FromString(answer) == Response.FromString(alone)


@given(_requests(), st.integers(0, 7), st.integers(0, 1), st.binary(min_size=1, max_size=4))
def test_data_that_are_longer_than_their_shape_go_with_nobodys(
    requests: list[Request], which: int, index: int, more: bytes
) -> None:
    request = requests[which % len(requests)]
    at = index % len(request.raw_input_contents)
    request.raw_input_contents[at] += more

    assert Batches().read(request.SerializeToString()) is None


@given(DATATYPES, st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_rows_are_cut_without_anything_left_or_missing(
    datatype: str, rows: list[int], data: st.DataObject
) -> None:
    shape = [sum(rows), 2]
    raw = data.draw(_data(datatype, prod(shape)))
    parts = cut(datatype, shape, raw, rows)

    assert b"".join(parts) == raw
    assert all(holds(datatype, [count, 2], part) for count, part in zip(rows, parts, strict=True))
    with pytest.raises(TensorMalformed):
        cut(datatype, shape, raw[:-1], rows)
    with pytest.raises(TensorMalformed):
        cut(datatype, [shape[0] + 1, 2], raw, rows)


def _request(rows: int = 1, **fields: Any) -> Request:
    request = Request(model_name="m", **fields)
    request.inputs.add(name="X", datatype="FP32", shape=[rows, 2])
    request.raw_input_contents.append(bytes(rows * 8))
    return request


def _shaped(request: Request, *shape: int) -> None:
    request.inputs[0].ClearField("shape")
    request.inputs[0].shape.extend(shape)


ODD: dict[str, Callable[[Request], object]] = {
    "a parameter": lambda one: one.parameters["priority"].CopyFrom(
        service_pb2.InferParameter(int64_param=1)
    ),
    "a parameter of an input": lambda one: (
        one.inputs[0]
        .parameters["shared_memory_region"]
        .CopyFrom(service_pb2.InferParameter(string_param="mine"))
    ),
    "a parameter of an output": lambda one: (
        one.outputs.add(name="Y")
        .parameters["classification"]
        .CopyFrom(service_pb2.InferParameter(int64_param=1))
    ),
    "contents that are not raw": lambda one: one.inputs[0].contents.fp32_contents.append(1.0),
    "too few raw contents": lambda one: one.ClearField("raw_input_contents"),
    "too many raw contents": lambda one: one.raw_input_contents.append(b""),
    "a second input with other rows": lambda one: (
        one.inputs.add(name="Z", datatype="INT8", shape=[2]),
        one.raw_input_contents.append(b"ab"),
    ),
    "no input": lambda one: (one.ClearField("inputs"), one.ClearField("raw_input_contents")),
    "no dimension": _shaped,
    "no rows": lambda one: (_shaped(one, 0, 2), one.raw_input_contents.__setitem__(0, b"")),
    "negative rows": lambda one: _shaped(one, -1, 2),
    "a negative dimension": lambda one: _shaped(one, 1, -2),
    "two negative dimensions": lambda one: _shaped(one, 1, -2, -1),
    "too many dimensions": lambda one: _shaped(one, *[1] * 17),
    "a dimension beyond belief": lambda one: _shaped(one, *[2**62] * 16),
    "an unknown datatype": lambda one: setattr(one.inputs[0], "datatype", "FP33"),
    "a name without end": lambda one: setattr(one.inputs[0], "name", "X" * 5000),
    "too many texts": lambda one: (
        setattr(one.inputs[0], "datatype", "BYTES"),
        _shaped(one, 1, TEXTS_MAX + 1),
        one.raw_input_contents.__setitem__(0, bytes(4 * (TEXTS_MAX + 1))),
    ),
    "data too large to be worth it": lambda one: (
        _shaped(one, 1, BYTES_MAX),
        one.raw_input_contents.__setitem__(0, bytes(4 * BYTES_MAX)),
    ),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_a_request_with_more_to_it_than_rows_goes_alone(odd: Callable[[Request], object]) -> None:
    request = _request()
    assert Batches().read(request.SerializeToString()) is not None
    odd(request)

    assert Batches().read(request.SerializeToString()) is None


def test_what_is_no_request_goes_alone() -> None:
    assert Batches().read(b"\xff not a protobuf") is None


@pytest.mark.parametrize(
    "other",
    [
        _request(model_version="2"),
        Request(inputs=_request().inputs, raw_input_contents=[bytes(8)], model_name="n"),
        Request(
            inputs=[Request.InferInputTensor(name="X", datatype="INT32", shape=[1, 2])],
            raw_input_contents=[bytes(8)],
            model_name="m",
        ),
        Request(
            inputs=[Request.InferInputTensor(name="X", datatype="FP32", shape=[1, 1, 2])],
            raw_input_contents=[bytes(8)],
            model_name="m",
        ),
        Request(
            inputs=[Request.InferInputTensor(name="W", datatype="FP32", shape=[1, 2])],
            raw_input_contents=[bytes(8)],
            model_name="m",
        ),
        _request(outputs=[Request.InferRequestedOutputTensor(name="Y")]),
    ],
    ids=["version", "model", "datatype", "shape", "input", "outputs"],
)
def test_requests_of_another_kind_do_not_go_together(other: Request) -> None:
    batches = Batches()
    asks = [batches.read(each.SerializeToString()) for each in (_request(), other, _request(3))]

    assert groups(asks, Batching(64)) == [[0, 2], [1]]


def test_more_kinds_of_requests_than_are_remembered_are_read_all_the_same() -> None:
    batches = Batches()
    for rows in range(1, 600):
        ask = batches.read(_request(rows).SerializeToString())
        assert ask is not None
        assert ask.rows == rows


def _ask(rows: int = 1, size_bytes: int = 1, form: bytes = b"f") -> Ask:
    return Ask(form, rows, (bytes(size_bytes),))


@pytest.mark.parametrize(
    ("asks", "how", "expected"),
    [
        ([_ask(3), _ask(3), _ask(2), _ask(9)], Batching(6), [[0, 1], [2], [3]]),
        ([_ask(), None, _ask()], Batching(6), [[0, 2], [1]]),
        ([_ask(size_bytes=BYTES_MAX // 2)] * 3, Batching(6), [[0, 1], [2]]),
        ([_ask()] * 5, Batching(6, instances=2), [[0, 1, 2], [3, 4]]),
        ([_ask(), _ask(form=b"g")] * 2, Batching(6), [[0, 2], [1, 3]]),
        ([], Batching(6), []),
    ],
    ids=["rows", "one alone", "bytes", "instances", "forms", "nobody"],
)
def test_who_goes_together(
    asks: Sequence[Ask | None], how: Batching, expected: list[list[int]]
) -> None:
    assert groups(asks, how) == expected


def _answered(rows: int, **fields: Any) -> Response:
    answer = Response(model_name="m", model_version="1", **fields)
    answer.outputs.add(name="Y", datatype="FP32", shape=[rows, 1])
    answer.raw_output_contents.append(bytes(rows * 4))
    return answer


WRONG: dict[str, Callable[[Response], object]] = {
    "too few rows": lambda one: one.outputs[0].shape.__setitem__(0, 2),
    "too many rows": lambda one: one.outputs[0].shape.__setitem__(0, 4),
    "data for other rows": lambda one: one.raw_output_contents.__setitem__(0, bytes(16)),
    "no dimension": lambda one: one.outputs[0].ClearField("shape"),
    "contents that are not raw": lambda one: one.ClearField("raw_output_contents"),
    "nothing": lambda one: (one.ClearField("outputs"), one.ClearField("raw_output_contents")),
    "data of another output": lambda one: one.raw_output_contents.append(b""),
    "a parameter": lambda one: one.parameters["of"].CopyFrom(
        service_pb2.InferParameter(string_param="whom")
    ),
    "a parameter of an output": lambda one: (
        one.outputs[0].parameters["of"].CopyFrom(service_pb2.InferParameter(string_param="whom"))
    ),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_an_answer_that_does_not_say_whose_it_is_is_not_split(
    wrong: Callable[[Response], object],
) -> None:
    answer, asks = _answered(3), [_ask(1), _ask(2)]
    assert len(Batches().split(answer.SerializeToString(), asks)) == 2
    wrong(answer)

    with pytest.raises(Unsplittable):
        Batches().split(answer.SerializeToString(), asks)


def test_the_groups_own_id_is_given_to_nobody() -> None:
    asks = [_ask(1), Ask(b"f", 1, (b"",), "mine")]

    answers = Batches().split(_answered(2, id="of all").SerializeToString(), asks)

    assert [Response.FromString(each).id for each in answers] == ["", "mine"]


def test_what_is_no_answer_is_not_split() -> None:
    with pytest.raises(Unsplittable):
        Batches().split(b"\xff not a protobuf", [_ask()])


def _config() -> service_pb2.ModelConfigResponse:
    config = model_config_pb2.ModelConfig(name="m", max_batch_size=8, backend="onnxruntime")
    config.dynamic_batching.SetInParent()
    config.input.add(name="X", data_type=model_config_pb2.TYPE_FP32, dims=[2])
    config.output.add(name="Y", data_type=model_config_pb2.TYPE_FP32, dims=[1])
    config.instance_group.add(count=2, gpus=[0, 1])
    config.instance_group.add(count=1)
    return service_pb2.ModelConfigResponse(config=config)


def test_a_model_with_dynamic_batching_may_be_asked_for_several() -> None:
    assert batching(_config().SerializeToString()) == Batching(8, instances=5)


def test_for_a_backend_that_hands_on_requests_the_owner_has_to_say_so() -> None:
    response = _config()
    response.config.backend = "python"
    before = batching(response.SerializeToString())
    response.config.parameters["busbar_merging"].string_value = "on"

    assert before is None
    assert batching(response.SerializeToString()) == Batching(8, instances=5)


ALONE: dict[str, Callable[[Config], object]] = {
    "no dynamic batching": lambda one: one.ClearField("dynamic_batching"),
    "sequences": lambda one: one.sequence_batching.SetInParent(),
    "one row": lambda one: setattr(one, "max_batch_size", 1),
    "decoupled": lambda one: setattr(one.model_transaction_policy, "decoupled", True),
    "a response cache": lambda one: setattr(one.response_cache, "enable", True),
    "an owner who does not want it": lambda one: setattr(
        one.parameters["busbar_merging"], "string_value", "off"
    ),
    "a backend that is not known": lambda one: setattr(one, "backend", "mine"),
    "batch input": lambda one: one.batch_input.add(),
    "batch output": lambda one: one.batch_output.add(),
    "an optional input": lambda one: setattr(one.input[0], "optional", True),
    "a ragged input": lambda one: setattr(one.input[0], "allow_ragged_batch", True),
    "a shape tensor": lambda one: setattr(one.input[0], "is_shape_tensor", True),
    "an odd layout": lambda one: setattr(one.input[0], "is_non_linear_format_io", True),
    "a shape tensor out": lambda one: setattr(one.output[0], "is_shape_tensor", True),
    "an odd layout out": lambda one: setattr(one.output[0], "is_non_linear_format_io", True),
}


@pytest.mark.parametrize("change", ALONE.values(), ids=ALONE)
def test_any_other_model_is_asked_for_each(change: Callable[[Config], object]) -> None:
    response = _config()
    change(response.config)

    assert batching(response.SerializeToString()) is None


@pytest.mark.parametrize("config", [b"", b"\xff"], ids=["none", "no protobuf"])
def test_a_model_of_which_nothing_is_known_is_asked_for_each(config: bytes) -> None:
    assert batching(config) is None
