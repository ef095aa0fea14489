"""Tensor elements between JSON and the little-endian bytes that Triton takes.

KServe v2: JSON data is row-major, flat or nested as the shape says; FP16 and
BF16 have no JSON form and travel as binary only, and so do NaN and Infinity.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from busbar_gateway.domain.failures import InvalidInput

_INTEGERS: dict[str, npt.DTypeLike] = {
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
}
_FLOATS: dict[str, npt.DTypeLike] = {"FP32": np.float32, "FP64": np.float64}
_BINARY_ONLY = frozenset({"FP16", "BF16"})
_LENGTH_PREFIX = struct.Struct("<I")

JsonElements = list[Any] | npt.NDArray[Any]
"""What orjson writes as a list with OPT_SERIALIZE_NUMPY."""


def encode_elements(name: str, datatype: str, shape: Sequence[int], data: object) -> bytes:
    """Return the binary form of a JSON tensor; raise InvalidInput when it does not fit.

    Numbers must be of the datatype's kind and range: 1.5 is no INT32, 300 no
    UINT8 and 1e39 no FP32.
    """
    flat = _flatten(name, shape, data)
    kinds = set(map(type, flat))
    if datatype == "BYTES":
        _require(name, datatype, kinds <= {str}, "strings")
        return b"".join(_with_length(text.encode()) for text in flat)
    if datatype == "BOOL":
        _require(name, datatype, kinds <= {bool}, "true or false")
        return np.array(flat, np.bool_).tobytes()
    if datatype in _INTEGERS:
        _require(name, datatype, kinds <= {int}, "integers")
        return _encode_integers(name, datatype, flat)
    if datatype in _FLOATS:
        _require(name, datatype, kinds <= {int, float}, "numbers")
        return _encode_floats(name, datatype, flat)
    if datatype in _BINARY_ONLY:
        raise InvalidInput(
            f"input '{name}': {datatype} has no JSON form; send it as binary data with a"
            " binary_data_size parameter"
        )
    raise InvalidInput(f"input '{name}': unknown datatype '{datatype}'")


def decode_elements(name: str, datatype: str, raw: bytes) -> JsonElements:
    """Return an output's elements, flat; raise InvalidInput where JSON cannot hold them."""
    if datatype in _INTEGERS:
        return np.frombuffer(raw, _INTEGERS[datatype])
    if datatype in _FLOATS:
        return _decode_floats(name, np.frombuffer(raw, _FLOATS[datatype]))
    if datatype == "BOOL":
        return np.frombuffer(raw, np.bool_)
    if datatype == "BYTES":
        return _decode_strings(name, raw)
    raise InvalidInput(
        f"output '{name}': {datatype} has no JSON form; ask for binary data with"
        " binary_data_output or binary_data"
    )


def split_bytes_elements(raw: bytes) -> list[bytes]:
    """Return the elements of a BYTES tensor; raise ValueError when a length overruns."""
    elements: list[bytes] = []
    position = 0
    while position < len(raw):
        if position + _LENGTH_PREFIX.size > len(raw):
            raise ValueError("the last length prefix is cut off")
        (length,) = _LENGTH_PREFIX.unpack_from(raw, position)
        position += _LENGTH_PREFIX.size
        if position + length > len(raw):
            raise ValueError(f"element {len(elements)} is longer than the data")
        elements.append(raw[position : position + length])
        position += length
    return elements


def join_bytes_elements(elements: Sequence[bytes]) -> bytes:
    """Return the binary form of a BYTES tensor."""
    return b"".join(map(_with_length, elements))


def _with_length(element: bytes) -> bytes:
    return _LENGTH_PREFIX.pack(len(element)) + element


def _require(name: str, datatype: str, holds: bool, expected: str) -> None:  # noqa: FBT001
    if not holds:
        raise InvalidInput(f"input '{name}': {datatype} data must be {expected} only")


def _flatten(name: str, shape: Sequence[int], data: object) -> list[Any]:
    """The elements in row-major order; flat data must have as many as the shape says."""
    if not isinstance(data, list):
        raise InvalidInput(f"input '{name}': data must be a list")
    flat: list[Any] = data
    if data and isinstance(data[0], list):
        flat = _flatten_nested(name, shape, data)
    expected = math.prod(shape)
    if len(flat) != expected:
        raise InvalidInput(
            f"input '{name}': shape {list(shape)} takes {expected} elements, data has {len(flat)}"
        )
    return flat


def _flatten_nested(name: str, shape: Sequence[int], data: list[Any]) -> list[Any]:
    level = data
    if len(level) != (shape[0] if shape else -1):
        raise InvalidInput(f"input '{name}': nested data does not have the shape {list(shape)}")
    for size in shape[1:]:
        if not all(type(row) is list and len(row) == size for row in level):
            raise InvalidInput(f"input '{name}': nested data does not have the shape {list(shape)}")
        level = list(chain.from_iterable(level))
    return level


def _encode_integers(name: str, datatype: str, flat: list[Any]) -> bytes:
    try:
        return np.array(flat, _INTEGERS[datatype]).tobytes()
    except OverflowError as error:
        raise InvalidInput(f"input '{name}': a value is out of the range of {datatype}") from error


def _encode_floats(name: str, datatype: str, flat: list[Any]) -> bytes:
    with np.errstate(over="ignore"):
        values = np.array(flat, np.float64).astype(_FLOATS[datatype])
    if not np.isfinite(values).all():
        raise InvalidInput(f"input '{name}': a value is out of the range of {datatype}")
    return values.tobytes()


def _decode_floats(name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Refuse what RFC 8259, section 6 has no numbers for; orjson would write null for it."""
    if not np.isfinite(values).all():
        raise InvalidInput(
            f"output '{name}' has values that are not finite, and JSON has no NaN or Infinity; ask"
            " for binary data with binary_data_output or binary_data"
        )
    return values


def _decode_strings(name: str, raw: bytes) -> list[str]:
    try:
        return [element.decode() for element in split_bytes_elements(raw)]
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"output '{name}' is not UTF-8 text; ask for binary data with binary_data_output"
            " or binary_data"
        ) from error
