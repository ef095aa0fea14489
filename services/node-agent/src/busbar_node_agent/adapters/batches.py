"""Joining serialized ModelInferRequests of several callers, and splitting the answer to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from tritonclient.grpc import model_config_pb2, service_pb2

from busbar_node_agent.domain.merging import BYTES_MAX, DIMENSIONS_MAX, Ask, Batching, cut, holds
from busbar_node_agent.domain.merging import joined as joined_contents
from busbar_node_agent.domain.tensors import TensorMalformed
from busbar_node_agent.usecases.lane import Infer, Inference
from busbar_node_agent.usecases.merge import Merger, Unsplittable

MERGING = "busbar_merging"
"""A parameter in config.pbtxt: "off" for a model whose rows of one request depend on each other,
"on" for one whose rows do not, although its backend hands it requests as they came."""
_JOINING = frozenset({"onnxruntime", "openvino", "tensorrt", "pytorch", "tensorflow"})
"""Backends that join requests themselves before the model sees them, so it knows rows alone."""
_HEAD_BYTES_MAX = 4096
_HEADS_MAX = 256

Request = service_pb2.ModelInferRequest
Response = service_pb2.ModelInferResponse


def batching(config_response: bytes) -> Batching | None:
    """How this model, by its serialized ModelConfigResponse, may be asked for several callers.

    None for one whose owner has not said that requests may be run together, or whose requests
    are more than rows of tensors.
    """
    try:
        config = service_pb2.ModelConfigResponse.FromString(config_response).config
    except DecodeError:
        return None
    odd = (
        not config.HasField("dynamic_batching"),
        config.max_batch_size < 2,  # noqa: PLR2004  # one row is no batch
        config.model_transaction_policy.decoupled,
        config.response_cache.enable,
        not _rows_are_alone(config),
        len(config.batch_input) > 0,
        len(config.batch_output) > 0,
        any(
            each.optional
            or each.allow_ragged_batch
            or each.is_shape_tensor
            or each.is_non_linear_format_io
            for each in config.input
        ),
        any(each.is_shape_tensor or each.is_non_linear_format_io for each in config.output),
    )
    if any(odd):
        return None
    instances = sum(each.count * max(1, len(each.gpus)) for each in config.instance_group)
    return Batching(config.max_batch_size, max(1, instances))


def _rows_are_alone(config: model_config_pb2.ModelConfig) -> bool:
    """Whether no row's result depends on what else stands in its request."""
    said = config.parameters[MERGING].string_value
    return said == "on" or (said != "off" and config.backend in _JOINING)


def merging(triton: Inference, model: str, config_response: bytes) -> Infer | None:
    """How to ask this model for several callers at once; None when it has to be asked for each."""
    how = batching(config_response)
    return None if how is None else Merger(triton, Batches(), how, model).infer


@dataclass(frozen=True, slots=True)
class _Head:
    """What stands before the data in requests of one kind."""

    form: bytes
    rows: int
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    """Datatype and shape of each input."""


class Batches:
    """Reads, joins and splits for one model."""

    def __init__(self) -> None:
        self._heads: dict[bytes, _Head | None] = {}

    def read(self, data: bytes) -> Ask | None:
        """The request, when it is one that may go with others."""
        if len(data) > BYTES_MAX // 2:
            return None
        try:
            request = Request.FromString(data)
        except DecodeError:
            return None
        contents, request_id = tuple(request.raw_input_contents), request.id
        request.ClearField("raw_input_contents")
        request.ClearField("id")
        head = self._head(request)
        if head is None or len(contents) != len(head.tensors):
            return None
        if not all(
            holds(datatype, shape, raw)
            for (datatype, shape), raw in zip(head.tensors, contents, strict=True)
        ):
            return None
        return Ask(head.form, head.rows, contents, request_id)

    def join(self, asks: Sequence[Ask]) -> bytes:
        """One request for the rows of all, which have the same form."""
        request = Request.FromString(asks[0].form)
        rows = sum(ask.rows for ask in asks)
        for tensor in request.inputs:
            tensor.shape[0] = rows
        request.raw_input_contents.extend(joined_contents(asks))
        return request.SerializeToString()

    def split(self, data: bytes, asks: Sequence[Ask]) -> list[bytes]:
        """Each one's own answer; raises Unsplittable."""
        rows = [ask.rows for ask in asks]
        try:
            answer = Response.FromString(data)
            raws = list(answer.raw_output_contents)
            if not raws or len(raws) != len(answer.outputs):
                raise Unsplittable(f"{len(raws)} raw contents for {len(answer.outputs)} outputs")
            if answer.parameters or any(each.parameters for each in answer.outputs):
                raise Unsplittable("it has parameters")
            cuts = [
                cut(output.datatype, output.shape, raw, rows)
                for output, raw in zip(answer.outputs, raws, strict=True)
            ]
        except (DecodeError, TensorMalformed) as error:
            raise Unsplittable(str(error)) from error
        answer.ClearField("raw_output_contents")
        answer.ClearField("id")
        heads = {count: _with_rows(answer, count) for count in set(rows)}
        return [
            # Serialized messages put together are the messages merged.
            heads[ask.rows]
            + Response(id=ask.request_id, raw_output_contents=own).SerializeToString()
            for ask, own in zip(asks, zip(*cuts, strict=True), strict=True)
        ]

    def _head(self, request: Request) -> _Head | None:
        key = request.SerializeToString(deterministic=True)
        if len(key) > _HEAD_BYTES_MAX:
            return None
        if key not in self._heads:
            if len(self._heads) >= _HEADS_MAX:
                self._heads.clear()
            self._heads[key] = _read_head(request)
        return self._heads[key]


def _read_head(request: Request) -> _Head | None:
    """Of a request without id and data; None when it is more than rows of tensors."""
    if request.parameters or any(each.parameters for each in request.outputs):
        return None
    if any(
        each.parameters or each.HasField("contents") or not 1 <= len(each.shape) <= DIMENSIONS_MAX
        for each in request.inputs
    ):
        return None
    rows = {each.shape[0] for each in request.inputs}
    if len(rows) != 1 or min(rows) < 1:
        return None
    tensors = tuple((each.datatype, tuple(each.shape)) for each in request.inputs)
    for each in request.inputs:
        each.shape[0] = 0
    return _Head(request.SerializeToString(deterministic=True), rows.pop(), tensors)


def _with_rows(answer: Response, rows: int) -> bytes:
    for output in answer.outputs:
        output.shape[0] = rows
    return answer.SerializeToString()
