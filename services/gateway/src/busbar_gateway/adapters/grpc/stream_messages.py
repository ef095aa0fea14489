"""What a ModelStreamInfer says of each of its requests."""

from __future__ import annotations

from typing import Any

import structlog
from busbar_errors import BusbarError
from tritonclient.grpc import service_pb2

from busbar_gateway.adapters.identity import public_id
from busbar_gateway.adapters.protobuf_wire import varint
from busbar_gateway.domain.failures import reason_for

log = structlog.get_logger()

pb: Any = service_pb2  # the generated module has no types

REQUEST_ID = "busbar_request_id"
"""Parameter of plain answers and errors: the id that a unary call has in its trailing metadata."""
_INFER_RESPONSE_TAG = b"\x12"
"""Field 2, length-delimited: ModelStreamInferResponse.infer_response."""


def response(payload: bytes) -> bytes:
    """Wrap a serialized ModelInferResponse as a ModelStreamInferResponse."""
    return _INFER_RESPONSE_TAG + varint(len(payload)) + payload


def plain_answer(payload: bytes, request_id: bytes) -> bytes:
    """As `response`, for the one answer of its request; it says so, and the id of that.

    Triton says so whether or not it is asked for empty last responses. What a decoupled model
    says leaves as it came, byte for byte, as it is charged; what is added here is not charged.
    """
    return response(payload + _parameters(request_id, triton_final_response=True))


def error_message(error: Exception, asked_as: str, request_id: bytes, *, accepted: bool) -> bytes:
    """The end of a request that failed; `asked_as` is the id that the client gave it.

    As from Triton, it says that it is the last of an accepted request, and not of any other.
    """
    if not isinstance(error, BusbarError):
        log.error("request failed by a bug", exc_info=error)
    named = pb.ModelInferResponse(id=asked_as)
    flags = {"triton_final_response": True} if accepted else {}
    named.MergeFromString(_parameters(request_id, **flags))
    message = pb.ModelStreamInferResponse(error_message=reason_for(error), infer_response=named)
    return message.SerializeToString()


def _parameters(request_id: bytes, **flags: bool) -> bytes:
    """To be put behind a serialized ModelInferResponse, whose map it adds to."""
    parameters = {name: pb.InferParameter(bool_param=value) for name, value in flags.items()}
    parameters[REQUEST_ID] = pb.InferParameter(string_param=public_id(request_id))
    return pb.ModelInferResponse(parameters=parameters).SerializeToString()
