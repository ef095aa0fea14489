"""Whether tensors fit the model."""

from __future__ import annotations

import math
from typing import Any

import pytest
from busbar_errors import BusbarError
from busbar_gateway.domain.failures import InvalidInput, UnknownVersion
from busbar_gateway.domain.routes import ModelSignature, TensorSpec
from busbar_gateway.domain.tensors import (
    BYTES_PER_ELEMENT,
    GivenTensor,
    check_inference,
    check_parameters,
)
from hypothesis import given
from hypothesis import strategies as st

SIGNATURE = ModelSignature(
    versions=frozenset({"1"}),
    inputs={
        "A": TensorSpec("A", "FP32", (-1, 4)),
        "S": TensorSpec("S", "BYTES", (-1, -1)),
        "OPT": TensorSpec("OPT", "INT8", (-1, 1), optional=True),
    },
    outputs={"Y": TensorSpec("Y", "FP32", (-1, 4))},
    max_batch_size=8,
    decoupled=False,
)
A = GivenTensor("A", "FP32", [2, 4], bytes(32))
S = GivenTensor("S", "BYTES", [2, 1], b"\x01\0\0\0x\x00\0\0\0")


def check(
    *inputs: GivenTensor, outputs: tuple[str, ...] = (), version: str = "", **signature: Any
) -> None:
    check_inference(SIGNATURE, version, inputs, outputs)


def complaint(*inputs: GivenTensor, outputs: tuple[str, ...] = (), version: str = "") -> str:
    """Why that is refused; "" when it is not."""
    try:
        check(*inputs, outputs=outputs, version=version)
    except BusbarError as error:
        return error.reason
    return ""


def test_what_fits_passes() -> None:
    optional = GivenTensor("OPT", "INT8", [2, 1], None, 2)

    assert complaint(A, S) == ""
    assert complaint(A, S, optional, outputs=("Y",), version="1") == ""


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ((), "no inputs"),
        ((A,), "'S' is missing"),
        ((A, A, S), "given twice"),
        ((A, S, GivenTensor("B", "FP32", [1], bytes(4))), "no input 'B'"),
        ((GivenTensor("A", "FP64", [2, 4], bytes(64)), S), "datatype 'FP64'"),
        ((GivenTensor("A", "NOPE", [2, 4], bytes(32)), S), "datatype 'NOPE'"),
        ((GivenTensor("A", "FP32", [8], bytes(32)), S), "shape [8]"),
        ((GivenTensor("A", "FP32", [2, 5], bytes(40)), S), "shape [2, 5]"),
        ((GivenTensor("A", "FP32", [-2, 4], bytes(32)), S), "impossible shape"),
        ((GivenTensor("A", "FP32", [9, 4], bytes(144)), S), "batch size 9"),
        ((GivenTensor("A", "FP32", [0, 4], b""), S), "batch size 0"),
        ((GivenTensor("A", "FP32", [2, 4], bytes(31)), S), "31 bytes"),
        ((GivenTensor("A", "FP32", [2, 4], b""), S), "0 bytes"),
        ((GivenTensor("A", "FP32", [2, 4], None, 7), S), "7 elements"),
        ((A, GivenTensor("S", "BYTES", [1, 1], b"\x02\0\0\0x")), "longer than the data"),
        ((A, GivenTensor("S", "BYTES", [1, 1], b"\xff\xff\xff\xffx")), "longer than the data"),
        ((A, GivenTensor("S", "BYTES", [1, 1], b"\x02\0")), "broken length"),
        ((A, GivenTensor("S", "BYTES", [1, 1], b"")), "holds 0 BYTES"),
        ((A, GivenTensor("S", "BYTES", [1, 1], bytes(8))), "holds more BYTES"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_name(
    inputs: tuple[GivenTensor, ...], says: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        check(*inputs)

    assert says in refused.value.reason


def test_unknown_versions_and_outputs_are_refused() -> None:
    with pytest.raises(UnknownVersion):
        check(A, S, version="9")
    with pytest.raises(InvalidInput, match="no output 'Z'"):
        check(A, S, outputs=("Z",))
    with pytest.raises(InvalidInput, match="requested twice"):
        check(A, S, outputs=("Y", "Y"))


@pytest.mark.parametrize("name", ["shared_memory_region", "shared_memory_byte_size"])
def test_shared_memory_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="shared memory"):
        check_parameters([], [name])


def test_sequences_are_refused_and_other_parameters_pass() -> None:
    check_parameters(["priority", "timeout"], ["classification"])
    with pytest.raises(InvalidInput, match="sequences"):
        check_parameters(["sequence_id"], [])


datatypes = st.sampled_from([*BYTES_PER_ELEMENT, "BYTES", "", "fp32"])
shapes = st.lists(st.integers(-1, 5), max_size=4)


@given(datatypes, shapes, st.binary(max_size=64))
def test_whatever_comes_is_accepted_or_refused_clearly(
    datatype: str, shape: list[int], raw: bytes
) -> None:
    signature = ModelSignature(
        versions=frozenset({"1"}),
        inputs={"X": TensorSpec("X", "FP32", (-1,) * len(shape))},
        outputs={},
        max_batch_size=0,
        decoupled=False,
    )
    tensor = GivenTensor("X", datatype, shape, raw)
    try:
        check_inference(signature, "", [tensor], [])
    except BusbarError:
        return

    assert datatype == "FP32"
    assert len(raw) == 4 * math.prod(shape)


@given(st.lists(st.binary(max_size=6), max_size=8), st.integers(0, 9))
def test_bytes_elements_are_counted(elements: list[bytes], claimed: int) -> None:
    raw = b"".join(len(e).to_bytes(4, "little") + e for e in elements)
    signature = ModelSignature(
        versions=frozenset({"1"}),
        inputs={"X": TensorSpec("X", "BYTES", (-1,))},
        outputs={},
        max_batch_size=0,
        decoupled=False,
    )
    tensor = GivenTensor("X", "BYTES", [claimed], raw)
    if claimed == len(elements):
        check_inference(signature, "", [tensor], [])
    else:
        with pytest.raises(InvalidInput):
            check_inference(signature, "", [tensor], [])
