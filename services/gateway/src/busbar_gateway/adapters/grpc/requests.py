"""Reading ModelInferRequest: parsed once to be checked, then its bytes go on unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from busbar_messaging.topology import MAX_FRAME_PAYLOAD_BYTES
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from busbar_gateway.domain.failures import InvalidInput, PayloadTooLarge
from busbar_gateway.domain.routes import Route
from busbar_gateway.domain.tensors import (
    DATATYPES,
    GivenTensor,
    check_inference,
    check_parameters,
)

# The generated module has no types.
_ModelInferRequest: Any = service_pb2.ModelInferRequest  # pyright: ignore[reportAttributeAccessIssue]

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Which typed field holds a datatype; FP16 and BF16 have none."""
_NARROW = {
    "INT8": (-(2**7), 2**7 - 1),
    "INT16": (-(2**15), 2**15 - 1),
    "UINT8": (0, 2**8 - 1),
    "UINT16": (0, 2**16 - 1),
}
"""Ranges of datatypes that are sent in wider fields."""


def read_request(payload: bytes) -> Any:
    """Parse; raise InvalidInput when the bytes are no ModelInferRequest."""
    try:
        return _ModelInferRequest.FromString(payload)
    except DecodeError as error:
        raise InvalidInput("the message is not a ModelInferRequest") from error


def check_size(route: Route, size: int) -> None:
    """Raise PayloadTooLarge when the model or the platform does not take `size` bytes."""
    limit = min(
        route.manifest.max_payload_bytes or MAX_FRAME_PAYLOAD_BYTES, MAX_FRAME_PAYLOAD_BYTES
    )
    if size > limit:
        raise PayloadTooLarge(f"the request has {size} bytes; this model takes {limit}")


def check_request(route: Route, request: Any) -> None:
    """Raise InvalidInput or UnknownVersion when the request does not fit the model."""
    if request.parameters or any(t.parameters for t in (*request.inputs, *request.outputs)):
        check_parameters(
            request.parameters,
            [name for t in (*request.inputs, *request.outputs) for name in t.parameters],
        )
    if route.signature is None:
        return  # no replica was ever ready, so there is nothing to compare with
    raw = request.raw_input_contents
    given = _given_raw(request.inputs, raw) if raw else [_given(t) for t in request.inputs]
    outputs = [output.name for output in request.outputs]
    check_inference(route.signature, request.model_version, given, outputs)


def _given_raw(inputs: Sequence[Any], raw: Sequence[bytes]) -> list[GivenTensor]:
    if len(raw) != len(inputs):
        raise InvalidInput(
            f"there are {len(inputs)} inputs and {len(raw)} raw_input_contents; send one for each",
            "raw_input_contents",
        )
    given: list[GivenTensor] = []
    for tensor, data in zip(inputs, raw, strict=True):
        if tensor.HasField("contents"):
            raise InvalidInput(
                f"input {tensor.name!r} has both contents and raw_input_contents", "inputs"
            )
        given.append(GivenTensor(tensor.name, tensor.datatype, tuple(tensor.shape), data))
    return given


def _given(tensor: Any) -> GivenTensor:
    datatype = tensor.datatype
    if datatype not in DATATYPES:
        raise InvalidInput(f"input {tensor.name!r} has no known datatype", "inputs")
    field_name = _CONTENTS.get(datatype)
    if field_name is None:
        raise InvalidInput(
            f"input {tensor.name!r}: {datatype} must be sent in raw_input_contents", "inputs"
        )
    for field, _ in tensor.contents.ListFields():
        if field.name != field_name:
            raise InvalidInput(
                f"input {tensor.name!r}: {datatype} must be sent in {field_name}", "inputs"
            )
    elements = getattr(tensor.contents, field_name)
    if elements and datatype in _NARROW:
        low, high = _NARROW[datatype]
        if min(elements) < low or max(elements) > high:
            raise InvalidInput(f"input {tensor.name!r} is out of the range of {datatype}", "inputs")
    return GivenTensor(tensor.name, datatype, tensor.shape, None, len(elements))
