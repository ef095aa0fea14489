"""KServe v2 HTTP answers: a ModelInferResponse as JSON with binary tensors behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from tritonclient.grpc import service_pb2

from busbar_gateway.adapters.http.kserve_elements import decode_elements
from busbar_gateway.adapters.http.kserve_request import OutputForms
from busbar_gateway.domain.failures import ModelFailed


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """A body and the length of its JSON part, None when it has no other part."""

    body: bytes
    json_length: int | None


def render_infer_answer(
    response: service_pb2.ModelInferResponse, forms: OutputForms
) -> InferAnswer:
    """Write what Triton answered in the form the caller asked for.

    Raises InvalidInput when JSON cannot hold an output that was asked for as JSON.
    """
    if len(response.raw_output_contents) != len(response.outputs):
        raise ModelFailed("the model's answer has no raw contents for some of its outputs")
    outputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
        }
        parameters = parameters_to_json(output.parameters)
        if forms.binary(output.name):
            parameters["binary_data_size"] = len(raw)
            tail.append(raw)
        else:
            entry["data"] = decode_elements(output.name, output.datatype, raw)
        if parameters:
            entry["parameters"] = parameters
        outputs.append(entry)
    document = _head(response)
    document["outputs"] = outputs
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not tail:
        return InferAnswer(text, None)
    return InferAnswer(b"".join([text, *tail]), len(text))


def _head(response: service_pb2.ModelInferResponse) -> dict[str, Any]:
    head: dict[str, Any] = {}
    if response.id:
        head["id"] = response.id
    head["model_name"] = response.model_name
    head["model_version"] = response.model_version
    if response.parameters:
        head["parameters"] = parameters_to_json(response.parameters)
    return head


def parameters_to_json(parameters: Any) -> dict[str, Any]:
    """Return a protobuf map of InferParameter as plain values."""
    if not parameters:  # mostly; a view of an empty map costs 2 µs
        return {}
    return {
        key: getattr(parameter, choice)
        for key, parameter in parameters.items()
        if (choice := parameter.WhichOneof("parameter_choice"))
    }
