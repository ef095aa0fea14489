"""What a node passed on from its model, read."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from busbar_gateway.domain.failures import ModelFailed


def is_response(payload: bytes) -> bool:
    """Whether this is an inference.ModelInferResponse with something in it.

    Triton's Python backend answers OK with nothing where its numpy is of the wrong version.
    """
    try:
        response = read_response(payload)
    except ModelFailed:
        return False
    # The mark by which Triton ends a stream, which is all of an answer of no responses.
    return bool(response.outputs or response.parameters["triton_final_response"].bool_param)


def read_response(payload: bytes) -> service_pb2.ModelInferResponse:
    """Parse an inference.ModelInferResponse; raise ModelFailed when it is none."""
    try:
        return service_pb2.ModelInferResponse.FromString(payload)
    except DecodeError as error:
        raise ModelFailed(f"the node's answer cannot be read: {error}") from error
