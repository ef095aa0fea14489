"""Tensors as the KServe v2 protocol carries them, raw little-endian, and their comparison."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

Element = bool | int | float | str
"""An element; BYTES elements are compared as text where they are UTF-8."""

_FORMATS = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
_BF16_BYTES = 2  # which struct does not know
_EXACT = {"BOOL", "BYTES"}
_LENGTH = struct.Struct("<I")


class TensorMalformed(ValueError):
    """Data do not fit datatype and shape."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Elements in row-major order."""

    datatype: str
    shape: tuple[int, ...]
    data: Sequence[Element]


def pack(tensor: Tensor) -> bytes:
    """Raw contents of `tensor`; raises TensorMalformed."""
    if len(tensor.data) != prod(tensor.shape):
        raise TensorMalformed(f"{len(tensor.data)} elements for shape {list(tensor.shape)}")
    if tensor.datatype == "BYTES":
        texts = [str(element).encode() for element in tensor.data]
        return b"".join(_LENGTH.pack(len(text)) + text for text in texts)
    try:
        return struct.pack(f"<{len(tensor.data)}{_format(tensor.datatype)}", *tensor.data)
    except struct.error as error:
        raise TensorMalformed(f"not {tensor.datatype}: {error}") from error


def unpack(datatype: str, shape: Sequence[int], raw: bytes) -> Tensor:
    """The tensor in `raw`; raises TensorMalformed."""
    count = prod(shape)
    if datatype == "BYTES":
        data: list[Element] = [*_texts(raw)]
        if len(data) != count:
            raise TensorMalformed(f"{len(data)} elements for shape {list(shape)}")
        return Tensor(datatype, tuple(shape), data)
    try:
        numbers = struct.unpack(f"<{count}{_format(datatype)}", raw)
    except struct.error as error:
        raise TensorMalformed(f"{len(raw)} bytes for {datatype}{list(shape)}: {error}") from error
    return Tensor(datatype, tuple(shape), numbers)


def difference(expected: Tensor, got: Tensor | None, tolerance: float) -> str:
    """How `got` differs from `expected` by more than `tolerance`; "" when it does not."""
    if got is None:
        return "is missing"
    if got.datatype != expected.datatype:
        return f"is {got.datatype}, expected {expected.datatype}"
    if tuple(got.shape) != tuple(expected.shape):
        return f"has shape {list(got.shape)}, expected {list(expected.shape)}"
    for index, (wanted, actual) in enumerate(zip(expected.data, got.data, strict=True)):
        if not _close(expected.datatype, wanted, actual, tolerance):
            return f"[{index}] is {actual!r}, expected {wanted!r} within {tolerance:g}"
    return ""


def element_bytes(datatype: str) -> int:
    """Bytes of one element of a datatype whose elements all have as many; or TensorMalformed."""
    return _BF16_BYTES if datatype == "BF16" else struct.calcsize(f"<{_format(datatype)}")


def end_of_texts(raw: bytes, begin: int, count: int) -> int:
    """Where `count` BYTES elements that begin there end, or should; raises TensorMalformed."""
    end = begin
    for _ in range(count):
        if end + _LENGTH.size > len(raw):
            raise TensorMalformed("a BYTES element's length is cut off")
        end += _LENGTH.size + _LENGTH.unpack_from(raw, end)[0]
    return end


def _close(datatype: str, wanted: Element, actual: Element, tolerance: float) -> bool:
    if datatype in _EXACT or isinstance(wanted, str) or isinstance(actual, str):
        return wanted == actual
    return wanted == actual or abs(actual - wanted) <= tolerance


def _format(datatype: str) -> str:
    known = _FORMATS.get(datatype)
    if known is None:
        raise TensorMalformed(f"datatype {datatype!r} is not one of {sorted([*_FORMATS, 'BYTES'])}")
    return known


def _texts(raw: bytes) -> list[str]:
    texts: list[str] = []
    offset = 0
    while offset < len(raw):
        if offset + _LENGTH.size > len(raw):
            raise TensorMalformed("a BYTES element's length is cut off")
        (length,) = _LENGTH.unpack_from(raw, offset)
        offset += _LENGTH.size
        if offset + length > len(raw):
            raise TensorMalformed("a BYTES element is longer than the tensor")
        texts.append(raw[offset : offset + length].decode(errors="backslashreplace"))
        offset += length
    return texts
