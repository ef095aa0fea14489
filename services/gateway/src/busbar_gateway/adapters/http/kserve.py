"""KServe v2 over HTTP, as Triton speaks it."""

from __future__ import annotations

import asyncio
from functools import partial
from importlib.metadata import version as package_version
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from tritonclient.grpc import service_pb2

from busbar_gateway.adapters import refusals
from busbar_gateway.adapters.http.exchange import JSON, Exchange
from busbar_gateway.adapters.http.kserve_request import (
    InferRequest,
    header_length,
    parse_infer_request,
)
from busbar_gateway.adapters.http.kserve_response import InferAnswer, render_infer_answer
from busbar_gateway.adapters.http.limits import compress
from busbar_gateway.adapters.http.router import Address
from busbar_gateway.adapters.http.services import Services
from busbar_gateway.adapters.model_response import read_response
from busbar_gateway.adapters.token_counts import ask_for_counts, text_bytes
from busbar_gateway.domain.failures import (
    Forbidden,
    ModelUnready,
    Unavailable,
    UnknownVersion,
    Unsupported,
)
from busbar_gateway.domain.routes import Route
from busbar_gateway.domain.tensors import EXTENSIONS, check_inference, check_parameters

_INTEGERS_64 = {FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64}
_COMPRESS_FROM_BYTES = 1024
_COMPRESS_ASIDE_FROM_BYTES = 64 * 1024


class KServe:
    """The endpoints under /v2."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._limits = services.limits

    def addresses(self) -> list[Address]:
        """The routes, the busiest first."""
        model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
        return [
            Address(f"{model}/infer", self.infer, "POST"),
            Address(f"{version}/infer", self.infer, "POST"),
            *[
                Address(path, partial(_refuse, reason), method)
                for reason, path, methods in CONTROLS
                for method in methods
            ],
            Address("/v2/health/live", self.live, "GET"),
            Address("/v2/health/ready", self.ready, "GET"),
            Address("/v2", self.server_metadata, "GET"),
            Address(model, self.model_metadata, "GET"),
            Address(version, self.model_metadata, "GET"),
            Address(f"{model}/ready", self.model_ready, "GET"),
            Address(f"{version}/ready", self.model_ready, "GET"),
            Address(f"{model}/config", self.model_config, "GET"),
            Address(f"{version}/config", self.model_config, "GET"),
        ]

    async def live(self, exchange: Exchange) -> None:
        """The process answers."""
        await exchange.respond(200, [], b"")

    async def ready(self, exchange: Exchange) -> None:
        """The gateway can serve."""
        if reasons := self._services.readiness():
            raise Unavailable(f"not ready: {', '.join(reasons)}")
        await exchange.respond(200, [], b"")

    async def server_metadata(self, exchange: Exchange) -> None:
        """Name, version and protocol extensions."""
        await exchange.respond_json(server_metadata())

    async def model_metadata(self, exchange: Exchange) -> None:
        """Inputs and outputs of a model."""
        route = self._find(exchange)
        metadata = service_pb2.ModelMetadataResponse.FromString(_known(route, route.metadata))
        await exchange.respond_json(
            {
                "name": metadata.name,
                "versions": list(metadata.versions),
                "platform": metadata.platform,
                "inputs": [_tensor_metadata(tensor) for tensor in metadata.inputs],
                "outputs": [_tensor_metadata(tensor) for tensor in metadata.outputs],
            }
        )

    async def model_ready(self, exchange: Exchange) -> None:
        """Whether any replica takes work, or comes back when it is asked."""
        route = self._find(exchange)
        if not route.usable:
            raise ModelUnready(route.unready)
        await exchange.respond(200, [], b"")

    async def model_config(self, exchange: Exchange) -> None:
        """Triton's own configuration of a model."""
        route = self._find(exchange)
        config = service_pb2.ModelConfigResponse.FromString(_known(route, route.config)).config
        document = json_format.MessageToDict(
            config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        await exchange.respond_json(restore_integers(document, config.DESCRIPTOR))

    async def infer(self, exchange: Exchange) -> None:
        """One inference, JSON or binary, answered in the form asked for."""
        route = self._find(exchange)
        body = await exchange.body()
        request = parse_infer_request(
            body,
            header_length(exchange.header(b"inference-header-content-length"), len(body)),
            model=route.deployment,
            version=exchange.path_params.get("version", ""),
        )
        check_request(route, request)
        payload = request.payload()
        call = exchange.call(route, payload, "kserve.http.infer", self._limits.request_timeout_s)
        if route.manifest.token_outputs:
            message = service_pb2.ModelInferRequest.FromString(payload)
            call.text_bytes = text_bytes(route, message)
            call.as_asked = ask_for_counts(route, message)
            if call.as_asked is not None:
                call.payload, call.request_bytes = message.SerializeToString(), len(payload)
        async with exchange.cancelled_when_gone(), self._services.serving.infer(call) as answer:
            exchange.cycle.before_last = answer.handing_over
            response = read_response(answer.payload)
            await _respond(exchange, render_infer_answer(response, request.head.forms))

    def _find(self, exchange: Exchange) -> Route:
        """The route named in the path; versions are checked where they are known."""
        route = self._services.routes.find(exchange.caller, exchange.path_params["model"])
        version = exchange.path_params.get("version", "")
        signature = route.signature
        if version and signature is not None and version not in signature.versions:
            raise UnknownVersion(f"the model has no version '{version}'")
        return route


def check_request(route: Route, request: InferRequest) -> None:
    """Raise the failure that the request would meet at the model, before it costs a slot."""
    head = request.head
    if head.request_parameters or head.tensor_parameters:
        check_parameters(head.request_parameters, head.tensor_parameters)
    signature = route.signature
    if signature is None:
        raise ModelUnready(route.unready)
    if signature.decoupled:
        raise Unsupported(
            f"the model '{route.deployment}' answers with many responses; call it with gRPC"
            " ModelStreamInfer or under /v1"
        )
    check_inference(signature, head.version, request.inputs, head.outputs)


def restore_integers(document: dict[str, Any], descriptor: Any) -> dict[str, Any]:
    """Return protobuf's JSON with 64-bit integers as numbers, as Triton writes them."""
    restored: dict[str, Any] = {}
    for name, value in document.items():
        field = descriptor.fields_by_name[name]
        restored[name] = _restored(value, field)
    return restored


def _restored(value: Any, field: Any) -> Any:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        entry = kind.fields_by_name["value"]
        return {key: _restored(item, entry) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item, field) for item in value]
    if kind is not None:
        return restore_integers(value, kind)
    return int(value) if field.cpp_type in _INTEGERS_64 else value


def server_metadata() -> dict[str, Any]:
    """What the server says of itself."""
    return {
        "name": "busbar",
        "version": package_version("busbar-gateway"),
        "extensions": list(EXTENSIONS),
    }


_CONTROL_PATHS: dict[str, dict[str, list[str]]] = {
    refusals.MODELS: {
        "/v2/repository/index": ["POST"],
        "/v2/repository/models/{model}/load": ["POST"],
        "/v2/repository/models/{model}/unload": ["POST"],
    },
    refusals.STATISTICS: {
        "/v2/models/stats": ["GET"],
        "/v2/models/{model}/stats": ["GET"],
        "/v2/models/{model}/versions/{version}/stats": ["GET"],
    },
    refusals.TRACING: {
        "/v2/models/{model}/trace/setting": ["GET", "POST"],
        "/v2/trace/setting": ["GET", "POST"],
    },
    refusals.LOGGING: {"/v2/logging": ["GET", "POST"]},
    refusals.MEMORY: {
        f"/v2/{kind}sharedmemory/{path}": methods
        for kind in ("system", "cuda")
        for path, methods in {
            "status": ["GET"],
            "region/{region}/status": ["GET"],
            "region/{region}/register": ["POST"],
            "region/{region}/unregister": ["POST"],
            "unregister": ["POST"],
        }.items()
    },
}
CONTROLS = [
    (reason, path, methods)
    for reason, paths in _CONTROL_PATHS.items()
    for path, methods in paths.items()
]
"""Triton's control of its own process: why it is not offered, path, methods."""


async def _refuse(reason: str, exchange: Exchange) -> None:
    raise Forbidden(f"{exchange.cycle.path}: {reason}")


def _known(route: Route, serialized: bytes) -> bytes:
    if not serialized:
        raise ModelUnready(route.unready)
    return serialized


def _tensor_metadata(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


async def _respond(exchange: Exchange, answer: InferAnswer) -> None:
    headers = JSON
    if answer.json_length is not None:
        length = str(answer.json_length).encode()
        headers = [
            (b"content-type", b"application/octet-stream"),
            (b"inference-header-content-length", length),
        ]
    body, encoding = answer.body, _accepted_encoding(exchange)
    if encoding and len(body) >= _COMPRESS_FROM_BYTES:
        headers = [
            *headers,
            (b"content-encoding", encoding.encode()),
            (b"vary", b"accept-encoding"),
        ]
        if len(body) < _COMPRESS_ASIDE_FROM_BYTES:
            body = compress(body, encoding)
        else:
            body = await asyncio.to_thread(compress, body, encoding)
    await exchange.respond(200, headers, body)


def _accepted_encoding(exchange: Exchange) -> str:
    """The first encoding that the client names and we have; "" for none."""
    for offer in exchange.text_header(b"accept-encoding").split(","):
        name, _, quality = offer.partition(";")
        if name.strip() in {"gzip", "deflate"} and quality.replace(" ", "") not in {"q=0", "q=0.0"}:
            return name.strip()
    return ""
