"""Reading output tensors out of a serialized inference.ModelInferResponse."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from busbar_node_agent.domain.tensors import Tensor, TensorMalformed, unpack
from busbar_node_agent.usecases.lane import TokenCounter

log = structlog.get_logger()

Output = service_pb2.ModelInferResponse.InferOutputTensor


def token_counter(
    prompt_output: str, generated_output: str, cached_output: str
) -> TokenCounter | None:
    """A counter that reads these outputs, in this order; None when there is none to read.

    An output that is absent or unreadable counts nothing: the model was not
    asked for it, or it is broken, and neither may cost the answer.
    """
    outputs = (prompt_output, generated_output, cached_output)
    if not any(outputs):
        return None

    def count(response: bytes) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
        try:
            found = _selected(response, {*outputs})
        except (DecodeError, TensorMalformed) as error:
            log.warning("token counts unreadable", error=str(error))
            return (), (), ()
        prompt, generated, cached = (_integers(found.get(output)) for output in outputs)
        return prompt, generated, cached

    return count


def tensors(response: bytes) -> dict[str, Tensor]:
    """Every output by name; raises TensorMalformed or DecodeError."""
    return _selected(response, None)


def _selected(response: bytes, names: set[str] | None) -> dict[str, Tensor]:
    message = service_pb2.ModelInferResponse.FromString(response)
    raw = message.raw_output_contents
    found: dict[str, Tensor] = {}
    for index, output in enumerate(message.outputs):
        if names is not None and output.name not in names:
            continue
        if index < len(raw):
            found[output.name] = unpack(output.datatype, output.shape, raw[index])
        else:
            found[output.name] = Tensor(output.datatype, tuple(output.shape), _listed(output))
    return found


def _listed(output: Output) -> list[int]:
    contents = output.contents
    fields = (contents.int_contents, contents.int64_contents, contents.uint_contents)
    return [int(number) for field in (*fields, contents.uint64_contents) for number in field]


def _integers(tensor: Tensor | None) -> Sequence[int]:
    if tensor is None:
        return ()
    return [element for element in tensor.data if isinstance(element, int)]
