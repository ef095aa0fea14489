"""KServe v2 HTTP inference requests, with Triton's binary tensor extension.

A body is a JSON document, optionally followed by the raw data of tensors whose
`binary_data_size` parameter says so; the header Inference-Header-Content-Length
then gives the length of the JSON part. Only what HTTP itself adds is checked
here; whether tensors fit the model is decided in domain/tensors.py for both edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import orjson
from tritonclient.grpc import service_pb2

from busbar_gateway.adapters.http.kserve_elements import encode_elements
from busbar_gateway.adapters.protobuf_wire import varint
from busbar_gateway.domain.failures import InvalidInput
from busbar_gateway.domain.tensors import RANK_MAX, GivenTensor

_INT64_MAX = 2**63 - 1
_INT64_MIN = -(2**63)
_UINT64_MAX = 2**64 - 1

_REMEMBERED_MAX = 1024
_REMEMBERED_BYTES_MAX = 4096
"""Longer JSON parts are not remembered."""
_RAW_CONTENTS_TAG = b"\x3a"
"""Field 7, length-delimited: ModelInferRequest.raw_input_contents."""
_HTTP_PARAMETERS = frozenset({"binary_data", "binary_data_size", "binary_data_output"})


@dataclass(frozen=True, slots=True)
class OutputForms:
    """Which outputs the caller wants as binary data."""

    default_binary: bool
    by_name: dict[str, bool]

    def binary(self, output: str) -> bool:
        """True when `output` is to follow the JSON document as raw bytes."""
        return self.by_name.get(output, self.default_binary)


@dataclass(frozen=True, slots=True)
class HeadTensor:
    """An input as the JSON part describes it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    inline: bytes | None
    """Its data as Triton takes it, where the JSON part holds it."""
    size: int
    """Of its data behind the JSON part."""


@dataclass(frozen=True, slots=True)
class InferHead:
    """The JSON part of a request."""

    described: bytes
    """A serialized ModelInferRequest with everything but raw_input_contents."""
    version: str
    tensors: tuple[HeadTensor, ...]
    outputs: tuple[str, ...]
    request_parameters: tuple[str, ...]
    tensor_parameters: tuple[str, ...]
    """Names of the parameters of all inputs and outputs."""
    forms: OutputForms


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request as Triton's gRPC takes it, and the form its answer is to have."""

    head: InferHead
    inputs: list[GivenTensor]

    def payload(self) -> bytes:
        """The serialized ModelInferRequest."""
        parts: list[bytes | memoryview] = [self.head.described]
        for tensor in self.inputs:
            raw = tensor.raw or b""
            parts += (_RAW_CONTENTS_TAG, varint(len(raw)), raw)
        return b"".join(parts)


def header_length(value: bytes | None, body_length: int) -> int:
    """Return the length of the JSON part; raise InvalidInput when the header makes no sense."""
    if value is None:
        return body_length
    if not value.isdigit() or len(value) > len(str(_INT64_MAX)):
        raise InvalidInput("Inference-Header-Content-Length must be a non-negative integer")
    length = int(value)
    if length == 0:
        raise InvalidInput(
            "raw binary requests are not supported: Inference-Header-Content-Length must cover"
            " the JSON part that describes the inputs"
        )
    if length > body_length:
        raise InvalidInput(
            f"Inference-Header-Content-Length is {length} but the body has only {body_length} bytes"
        )
    return length


def parse_infer_request(
    body: bytes, json_length: int, *, model: str, version: str = ""
) -> InferRequest:
    """Translate a body whose first `json_length` bytes are JSON.

    Raises InvalidInput with the reason when it is not a KServe v2 inference request.
    """
    if json_length < len(body) and json_length <= _REMEMBERED_BYTES_MAX:
        head = _remembered(body[:json_length], model, version)
    else:
        head = _read_head(memoryview(body)[:json_length], model, version)
    return InferRequest(head, _given(head, memoryview(body)[json_length:]))


def _read_head(text: bytes | memoryview, model: str, version: str) -> InferHead:
    document = parse_json_object(text)
    parameters = _optional(document, "parameters", dict, "the request")
    message = service_pb2.ModelInferRequest(
        model_name=model, model_version=version, id=_optional(document, "id", str, "the request")
    )
    _set_parameters(message.parameters, parameters, "the request")
    tensors = _add_inputs(message, document)
    forms = OutputForms(
        default_binary=_flag(parameters, "binary_data_output", "the request"),
        by_name=_add_outputs(message, document),
    )
    return InferHead(
        described=message.SerializeToString(),
        version=version,
        tensors=tensors,
        outputs=tuple(output.name for output in message.outputs),
        request_parameters=tuple(message.parameters),
        tensor_parameters=tuple(
            name for tensor in (*message.inputs, *message.outputs) for name in tensor.parameters
        ),
        forms=forms,
    )


_remembered = lru_cache(maxsize=_REMEMBERED_MAX)(_read_head)
"""Clients repeat themselves: with the data behind it, the JSON part of their requests is the
same as long as the shapes are."""


def _given(head: InferHead, tail: memoryview) -> list[GivenTensor]:
    position = 0
    given: list[GivenTensor] = []
    for tensor in head.tensors:
        raw: bytes | memoryview
        if tensor.inline is not None:
            raw = tensor.inline
        else:
            raw = _take(tail, position, tensor)
            position += tensor.size
        given.append(GivenTensor(tensor.name, tensor.datatype, tensor.shape, raw))
    if position != len(tail):
        raise InvalidInput(
            f"{len(tail) - position} bytes follow the binary data that the inputs describe"
        )
    return given


def parse_json_object(text: bytes | memoryview) -> dict[str, Any]:
    """Return a JSON object; raise InvalidInput when `text` is anything else."""
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidInput("the body must be a JSON object")
    return cast("dict[str, Any]", document)


def _add_inputs(
    message: service_pb2.ModelInferRequest, document: dict[str, Any]
) -> tuple[HeadTensor, ...]:
    tensors: list[HeadTensor] = []
    for entry in _tensors(document, "inputs"):
        name = _required(entry, "name", str, "an input")
        where = f"input '{name}'"
        shape = _shape(entry, where)
        datatype = _required(entry, "datatype", str, where)
        parameters = _optional(entry, "parameters", dict, where)
        tensor = message.inputs.add(name=name, datatype=datatype, shape=shape)
        _set_parameters(tensor.parameters, parameters, where)
        if "shared_memory_region" in parameters:
            continue  # refused, with its reason, by the rules both edges share
        size, inline = _binary_size(parameters, where), None
        if size is None:
            inline = encode_elements(name, datatype, shape, entry.get("data"))
        elif "data" in entry:
            raise InvalidInput(f"{where} has both data and binary_data_size")
        tensors.append(HeadTensor(name, datatype, tuple(shape), inline, size or 0))
    return tuple(tensors)


def _add_outputs(
    message: service_pb2.ModelInferRequest, document: dict[str, Any]
) -> dict[str, bool]:
    """Add the outputs asked for; return the form of those that say one."""
    forms: dict[str, bool] = {}
    if document.get("outputs") is None:
        return forms
    for entry in _tensors(document, "outputs"):
        name = _required(entry, "name", str, "an output")
        where = f"output '{name}'"
        parameters = _optional(entry, "parameters", dict, where)
        output = message.outputs.add(name=name)
        _set_parameters(output.parameters, parameters, where)
        if "binary_data" in parameters:
            forms[name] = _flag(parameters, "binary_data", where)
    return forms


def _tensors(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = document.get(key)
    if not isinstance(entries, list):
        raise InvalidInput(f"'{key}' must be a list")
    if not all(isinstance(entry, dict) for entry in entries):
        raise InvalidInput(f"every element of '{key}' must be an object")
    return cast("list[dict[str, Any]]", entries)


def _shape(entry: dict[str, Any], where: str) -> list[int]:
    shape = _required(entry, "shape", list, where)
    if len(shape) > RANK_MAX:
        raise InvalidInput(f"{where}: shape must have at most {RANK_MAX} dimensions")
    if not all(type(size) is int and 0 <= size <= _INT64_MAX for size in shape):
        raise InvalidInput(f"{where}: shape must be a list of non-negative integers")
    return shape


def _binary_size(parameters: dict[str, Any], where: str) -> int | None:
    size = parameters.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise InvalidInput(f"{where}: binary_data_size must be a non-negative integer")
    return size


def _take(tail: memoryview, position: int, tensor: HeadTensor) -> memoryview:
    if position + tensor.size > len(tail):
        raise InvalidInput(
            f"input '{tensor.name}': binary_data_size is {tensor.size}"
            f" but only {len(tail) - position} bytes are left"
        )
    return tail[position : position + tensor.size]


def _set_parameters(target: Any, parameters: dict[str, Any], where: str) -> None:
    """Copy parameters into a protobuf map, except those that only concern HTTP."""
    for key, value in parameters.items():
        if key in _HTTP_PARAMETERS:
            continue
        match value:
            case bool():
                target[key].bool_param = value
            case int() if _INT64_MIN <= value <= _INT64_MAX:
                target[key].int64_param = value
            case int() if value <= _UINT64_MAX:
                target[key].uint64_param = value
            case float():
                target[key].double_param = value
            case str():
                target[key].string_param = value
            case _:
                raise InvalidInput(
                    f"{where}: parameter '{key}' must be a string, number or boolean"
                )


def _flag(parameters: dict[str, Any], key: str, where: str) -> bool:
    value = parameters.get(key, False)
    if not isinstance(value, bool):
        raise InvalidInput(f"{where}: parameter '{key}' must be true or false")
    return value


def _required(entry: dict[str, Any], key: str, kind: type, where: str) -> Any:
    value = entry.get(key)
    if not isinstance(value, kind):
        raise InvalidInput(f"{where}: '{key}' is missing or not a {_KIND_NAMES[kind]}")
    return value


def _optional(entry: dict[str, Any], key: str, kind: type, where: str) -> Any:
    value = entry.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise InvalidInput(f"{where}: '{key}' must be a {_KIND_NAMES[kind]}")
    return value


_KIND_NAMES: dict[type, str] = {str: "string", list: "list", dict: "JSON object"}
