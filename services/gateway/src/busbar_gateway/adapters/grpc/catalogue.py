"""Health, metadata, and the calls of Triton that customers may not make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from busbar_gateway.adapters import refusals
from busbar_gateway.adapters.grpc.native import Call, Handler
from busbar_gateway.adapters.grpc.statuses import Metadata
from busbar_gateway.domain.failures import (
    Forbidden,
    InvalidInput,
    ModelUnready,
    UnknownDeployment,
    UnknownVersion,
)
from busbar_gateway.domain.routes import Caller, Route
from busbar_gateway.domain.tensors import EXTENSIONS

pb: Any = service_pb2  # the generated module has no types

SERVER_NAME = "busbar"

_REFUSED = {
    "ModelStatistics": refusals.STATISTICS,
    "RepositoryIndex": refusals.MODELS,
    "RepositoryModelLoad": refusals.MODELS,
    "RepositoryModelUnload": refusals.MODELS,
    "SystemSharedMemoryStatus": refusals.MEMORY,
    "SystemSharedMemoryRegister": refusals.MEMORY,
    "SystemSharedMemoryUnregister": refusals.MEMORY,
    "CudaSharedMemoryStatus": refusals.MEMORY,
    "CudaSharedMemoryRegister": refusals.MEMORY,
    "CudaSharedMemoryUnregister": refusals.MEMORY,
    "TraceSetting": refusals.TRACING,
    "LogSettings": refusals.LOGGING,
}

Authenticate = Callable[[Metadata], Caller]
Find = Callable[[Caller, str], Route]
Answer = Callable[[Any, Call], bytes]


class Catalogue:
    """Everything of inference.GRPCInferenceService but inference."""

    def __init__(
        self,
        authenticate: Authenticate,
        find: Find,
        readiness: Callable[[], list[str]],
        version: str,
    ) -> None:
        self._authenticate = authenticate
        self._find = find
        self._readiness = readiness
        self._version = version

    def handlers(self) -> dict[str, Handler]:
        """The handlers by method name."""
        served = {
            "ServerLive": (pb.ServerLiveRequest, self._server_live),
            "ServerReady": (pb.ServerReadyRequest, self._server_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, self._server_metadata),
            "ModelReady": (pb.ModelReadyRequest, self._model_ready),
            "ModelMetadata": (pb.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": (pb.ModelConfigRequest, self._model_config),
        }
        handlers = {name: _handler(parsed, answer) for name, (parsed, answer) in served.items()}
        for name, reason in _REFUSED.items():
            handlers[name] = self._refusal(reason)
        return handlers

    def _server_live(self, request: Any, call: Call) -> bytes:
        del request, call
        return pb.ServerLiveResponse(live=True).SerializeToString()

    def _server_ready(self, request: Any, call: Call) -> bytes:
        del request, call
        return pb.ServerReadyResponse(ready=not self._readiness()).SerializeToString()

    def _server_metadata(self, request: Any, call: Call) -> bytes:
        del request
        self._authenticate(call.metadata)
        return pb.ServerMetadataResponse(
            name=SERVER_NAME, version=self._version, extensions=EXTENSIONS
        ).SerializeToString()

    def _model_ready(self, request: Any, call: Call) -> bytes:
        caller = self._authenticate(call.metadata)
        try:
            route = self._find(caller, request.name)
            _check_version(route, request.version)
            ready = route.usable
        except (UnknownDeployment, UnknownVersion):
            ready = False  # as Triton answers
        return pb.ModelReadyResponse(ready=ready).SerializeToString()

    def _model_metadata(self, request: Any, call: Call) -> bytes:
        return self._described(request, call).metadata

    def _model_config(self, request: Any, call: Call) -> bytes:
        return self._described(request, call).config

    def _described(self, request: Any, call: Call) -> Route:
        route = self._find(self._authenticate(call.metadata), request.name)
        if not route.metadata:
            raise ModelUnready(route.unready)
        _check_version(route, request.version)
        return route

    def _refusal(self, reason: str) -> Handler:
        async def refuse(payload: bytes, call: Call) -> None:
            del payload
            self._authenticate(call.metadata)
            raise Forbidden(reason)

        return refuse


def _handler(message: Any, answer: Answer) -> Handler:
    async def handle(payload: bytes, call: Call) -> None:
        try:
            request = message.FromString(payload)
        except DecodeError as error:
            raise InvalidInput(f"the message is not a {message.DESCRIPTOR.name}") from error
        call.respond(answer(request, call))

    return handle


def _check_version(route: Route, version: str) -> None:
    if version and route.signature and version not in route.signature.versions:
        raise UnknownVersion(f"the model has no version {version[:32]!r}")
