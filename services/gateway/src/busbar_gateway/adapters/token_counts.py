"""Token counts reach the billable record whether or not the customer wants to see them.

A node reads the counts from the model's own outputs, and a model only returns
those that it is asked for: by the outputs that a request names, and, in the vLLM
backend's contract, by an input `return_` + the output's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from busbar_gateway.domain.failures import InvalidInput, ModelFailed
from busbar_gateway.domain.routes import ModelSignature, Route, TensorSpec

_ModelInferResponse: Any = service_pb2.ModelInferResponse


def ask_for_counts(route: Route, request: Any) -> Callable[[bytes], bytes] | None:
    """Make a checked ModelInferRequest ask for every count that the model offers.

    Returns what takes the counts out of a response that the customer did not ask
    for; None when the request asked for all of them and is unchanged.
    """
    signature = route.signature
    if signature is None or not route.manifest.token_outputs:
        return None
    named = {output.name for output in request.outputs}
    _refuse_classified(request.outputs, route.manifest.token_outputs)
    hidden = set[str]()
    for output in route.manifest.token_outputs:
        flag = signature.inputs.get(f"return_{output}")
        if flag is not None and not _switch_on(request, flag, signature):
            hidden.add(output)
        if named and output not in named:
            request.outputs.add(name=output)
            hidden.add(output)
    return partial(_without, hidden) if hidden else None


def text_bytes(route: Route, request: Any) -> int:
    """Size of the text in a checked ModelInferRequest that the model reads, with what frames it;
    0 where nothing tells it."""
    task, raw = route.manifest.task, request.raw_input_contents
    if task == "tensor":
        return 0
    size = 0
    for index, tensor in enumerate(request.inputs):
        if tensor.datatype != "BYTES" or (task == "chat" and tensor.name != "text_input"):
            continue
        given = raw[index : index + 1] if raw else tensor.contents.bytes_contents
        size += sum(map(len, given))
    return size


def _refuse_classified(outputs: Any, counts: Collection[str]) -> None:
    """A classified output is text about the count, not the count."""
    for output in outputs:
        if output.name in counts and "classification" in output.parameters:
            raise InvalidInput(f"output {output.name!r} cannot be classified", "outputs")


def _switch_on(request: Any, flag: TensorSpec, signature: ModelSignature) -> bool:
    """Set a boolean input to true; returns whether it was."""
    as_raw = bool(request.raw_input_contents)
    for index, tensor in enumerate(request.inputs):
        if tensor.name != flag.name:
            continue
        if as_raw:
            given = request.raw_input_contents[index]
            request.raw_input_contents[index] = b"\x01" * len(given)
            return all(given)
        given = list(tensor.contents.bool_contents)
        tensor.contents.bool_contents[:] = [True] * len(given)
        return all(given)
    _add_true(request, flag, signature, as_raw=as_raw)
    return False


def _add_true(request: Any, flag: TensorSpec, signature: ModelSignature, *, as_raw: bool) -> None:
    shape = [max(size, 1) for size in flag.shape]
    if signature.max_batch_size:
        shape[0] = request.inputs[0].shape[0]
    tensor = request.inputs.add(name=flag.name, datatype=flag.datatype, shape=shape)
    if as_raw:
        request.raw_input_contents.append(b"\x01" * math.prod(shape))
    else:
        tensor.contents.bool_contents.extend([True] * math.prod(shape))


def _without(hidden: Collection[str], payload: bytes) -> bytes:
    try:
        response = _ModelInferResponse.FromString(payload)
    except DecodeError as error:
        raise ModelFailed("the model's answer is not a ModelInferResponse") from error
    raw = response.raw_output_contents
    for index in reversed(range(len(response.outputs))):
        if response.outputs[index].name in hidden:
            del response.outputs[index]
            if index < len(raw):
                del raw[index]
    return response.SerializeToString()
