"""google.rpc.Status in grpc-status-details-bin: what failed, and when to try again.

Source: https://grpc.io/docs/guides/error/ (richer error model).
"""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

DETAILS = "grpc-status-details-bin"
ERROR_DOMAIN = "busbar"
_NS_PER_S = 1_000_000_000


def error_info(name: str) -> ErrorInfo:
    """What failed, by the name that it has over HTTP, in the letters that ErrorInfo asks for."""
    return ErrorInfo(reason=name.upper(), domain=ERROR_DOMAIN)


def retry_info(retry_after_s: float) -> RetryInfo:
    """When a retry may succeed."""
    seconds, nanos = divmod(round(retry_after_s * _NS_PER_S), _NS_PER_S)
    return RetryInfo(retry_delay=Duration(seconds=seconds, nanos=nanos))


def details(code: int, reason: str, *infos: Message) -> tuple[str, bytes]:
    """Return the trailing metadata that holds `infos`."""
    status = Status(code=code, message=reason)
    for info in infos:
        status.details.add().Pack(info)
    return DETAILS, status.SerializeToString()
