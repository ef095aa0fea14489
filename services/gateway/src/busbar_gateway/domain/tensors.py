"""Whether the tensors of a request fit the model, by the KServe v2 protocol.

Both edges check here, so that a request is refused in the same words over gRPC
and HTTP, and before it costs a slot.
Protocol: https://github.com/kserve/open-inference-protocol (inference-grpc, inference-rest).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from busbar_gateway.domain.failures import InvalidInput, UnknownVersion
from busbar_gateway.domain.routes import ModelSignature, TensorSpec

BYTES_PER_ELEMENT = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
}
"""Size of one element on the wire; BYTES is not here because its elements have no fixed size."""
DATATYPES = frozenset([*BYTES_PER_ELEMENT, "BYTES"])

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "parameters")
"""Triton's extensions of the protocol that customers may use, by Triton's names.

Not among them: sequences, shared memory, and what belongs to the operator.
"""

RANK_MAX = 32
TENSORS_MAX = 1024
_LENGTH_PREFIX_BYTES = 4

_SHARED_MEMORY = frozenset(
    {"shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"}
)
_SEQUENCE = frozenset({"sequence_id", "sequence_start", "sequence_end"})


@dataclass(frozen=True, slots=True)
class GivenTensor:
    """An input as the customer sent it: raw bytes, or a number of typed elements."""

    name: str
    datatype: str
    shape: Sequence[int]
    raw: bytes | memoryview | None = None
    """Little-endian row-major data; BYTES elements each carry a 4-byte length. None: not raw."""
    element_count: int = 0
    """Elements given as typed or JSON values; meaningful only when `raw` is None."""


def fixed_bytes(datatype: str, shape: Sequence[int]) -> int:
    """Size of a tensor of this datatype and shape; -1 where it varies."""
    size = BYTES_PER_ELEMENT.get(datatype)
    if size is None or any(dimension < 0 for dimension in shape):
        return -1
    return size * math.prod(shape)


def check_inference(
    signature: ModelSignature,
    version: str,
    inputs: Sequence[GivenTensor],
    outputs: Sequence[str],
) -> None:
    """Raise InvalidInput or UnknownVersion when the request does not fit the model."""
    if version and version not in signature.versions:
        raise UnknownVersion(f"the model has no version {version!r}")
    if not inputs:
        raise InvalidInput("the request has no inputs", "inputs")
    if len(inputs) > TENSORS_MAX or len(outputs) > TENSORS_MAX:
        raise InvalidInput(f"more than {TENSORS_MAX} inputs or outputs", "inputs")
    seen = set[str]()
    for tensor in inputs:
        if tensor.name in seen:
            raise InvalidInput(f"input {tensor.name!r} is given twice", "inputs")
        seen.add(tensor.name)
        spec = signature.inputs.get(tensor.name)
        if spec is None:
            raise InvalidInput(_unknown("input", tensor.name, signature.inputs), "inputs")
        if not _fits_exactly(spec, tensor):
            _check_against(spec, tensor, signature.max_batch_size)
            _check_data(tensor)
    if len(seen) < len(signature.inputs):
        _check_missing(signature, seen)
    if outputs:
        _check_outputs(signature, outputs)


def check_parameters(request: Iterable[str], tensors: Iterable[str]) -> None:
    """Raise InvalidInput when a parameter asks for something that is not offered.

    `request` names the request's own parameters, `tensors` those of all its inputs and outputs.
    """
    for name in request:
        if name in _SEQUENCE:
            raise InvalidInput(
                f"parameter {name!r}: sequences are not offered; send each request by itself",
                "parameters",
            )
    for name in tensors:
        if name in _SHARED_MEMORY:
            raise InvalidInput(
                f"parameter {name!r}: shared memory is not offered; send the data in the request",
                "parameters",
            )


def _fits_exactly(spec: TensorSpec, tensor: GivenTensor) -> bool:
    """The usual case at once: everything is fixed and everything is right."""
    return (
        tensor.raw is not None
        and len(tensor.raw) == spec.fixed_bytes
        and tensor.datatype == spec.datatype
        and tensor.shape == spec.shape
    )


def _check_against(spec: TensorSpec, tensor: GivenTensor, max_batch_size: int) -> None:
    if tensor.datatype != spec.datatype:
        raise InvalidInput(
            f"input {tensor.name!r} has datatype {tensor.datatype[:32]!r};"
            f" the model takes {spec.datatype}",
            "inputs",
        )
    shape = tensor.shape
    if len(shape) > RANK_MAX or any(size < 0 for size in shape):
        raise InvalidInput(f"input {tensor.name!r} has an impossible shape", "inputs")
    if spec.any_shape:
        return
    expected = spec.shape
    if len(shape) != len(expected) or any(
        want not in (-1, size) for want, size in zip(expected, shape, strict=False)
    ):
        raise InvalidInput(
            f"input {tensor.name!r} has shape {list(shape)}; the model takes {list(expected)}",
            "inputs",
        )
    if max_batch_size and not 1 <= shape[0] <= max_batch_size:
        raise InvalidInput(
            f"input {tensor.name!r} has batch size {shape[0]};"
            f" the model takes 1 to {max_batch_size}",
            "inputs",
        )


def _check_data(tensor: GivenTensor) -> None:
    elements = math.prod(tensor.shape)
    if tensor.raw is None:
        if tensor.element_count != elements:
            raise InvalidInput(
                f"input {tensor.name!r} has {tensor.element_count} elements;"
                f" its shape {list(tensor.shape)} has {elements}",
                "inputs",
            )
        return
    size = BYTES_PER_ELEMENT.get(tensor.datatype)
    if size is None:
        _check_bytes_elements(tensor.name, tensor.raw, elements)
    elif len(tensor.raw) != elements * size:
        raise InvalidInput(
            f"input {tensor.name!r} has {len(tensor.raw)} bytes of data; its shape"
            f" {list(tensor.shape)} of {tensor.datatype} needs {elements * size}",
            "inputs",
        )


def _check_bytes_elements(name: str, raw: bytes | memoryview, elements: int) -> None:
    position, found, total = 0, 0, len(raw)
    while position < total:
        data_starts = position + _LENGTH_PREFIX_BYTES
        if data_starts > total:
            raise InvalidInput(f"input {name!r}: element {found} has a broken length", "inputs")
        position = data_starts + int.from_bytes(raw[position:data_starts], "little")
        if position > total:
            raise InvalidInput(
                f"input {name!r}: element {found} says it is longer than the data", "inputs"
            )
        found += 1
        if found > elements:
            break
    if found != elements:
        held = "more" if found > elements else str(found)
        raise InvalidInput(
            f"input {name!r} holds {held} BYTES elements; its shape has {elements}", "inputs"
        )


def _check_missing(signature: ModelSignature, seen: Collection[str]) -> None:
    for name, spec in signature.inputs.items():
        if name not in seen and not spec.optional:
            raise InvalidInput(f"input {name!r} is missing", "inputs")


def _check_outputs(signature: ModelSignature, outputs: Sequence[str]) -> None:
    seen = set[str]()
    for name in outputs:
        if name in seen:
            raise InvalidInput(f"output {name!r} is requested twice", "outputs")
        seen.add(name)
        if name not in signature.outputs:
            raise InvalidInput(_unknown("output", name, signature.outputs), "outputs")


def _unknown(kind: str, name: str, known: Collection[str]) -> str:
    return f"the model has no {kind} {name[:64]!r}; it has {', '.join(sorted(known))}"
