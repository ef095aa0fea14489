"""The gRPC server: KServe v2, the standard health service and reflection on one port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc
from busbar_messaging.background import end, rest_s
from busbar_messaging.topology import MAX_FRAME_PAYLOAD_BYTES
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from busbar_gateway.adapters.grpc.bounded import on_grpcio
from busbar_gateway.adapters.grpc.catalogue import Catalogue
from busbar_gateway.adapters.grpc.crowd import keep_out
from busbar_gateway.adapters.grpc.goodbye import say_goodbye
from busbar_gateway.adapters.grpc.inference import Inference
from busbar_gateway.adapters.grpc.native import Handler, NativeServer, behind
from busbar_gateway.adapters.grpc.statuses import Context, abort, metadata_of
from busbar_gateway.domain.failures import Forbidden, InvalidInput, Unauthenticated

SERVICE = "inference.GRPCInferenceService"

_CONCURRENT_STREAMS_MAX = 1024
_ENVELOPE_BYTES = 1024
"""What ModelStreamInferResponse adds to a payload, generously."""
_LIMITS = {
    "max_concurrent_streams": _CONCURRENT_STREAMS_MAX,
    "max_metadata_size": 16 * 1024,
    "keepalive_time_ms": 30_000,
    "keepalive_timeout_ms": 10_000,
}
_FALLBACK_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_FRAME_PAYLOAD_BYTES),
    ("grpc.max_send_message_length", MAX_FRAME_PAYLOAD_BYTES + _ENVELOPE_BYTES),
    ("grpc.max_concurrent_streams", _CONCURRENT_STREAMS_MAX),
)
_HEALTH_EVERY_S = 0.5


_HealthServicer: Any = health.aio.HealthServicer  # pyright: ignore[reportAttributeAccessIssue]


class _GuardedReflection(reflection_pb2_grpc.ServerReflectionServicer):
    """Reflection for those who have a key."""

    def __init__(self, inference: Inference, service_names: tuple[str, ...]) -> None:
        self._open: Any = reflection.aio.ReflectionServicer(service_names)
        self._inference = inference

    async def ServerReflectionInfo(  # noqa: N802
        self, request_iterator: AsyncIterator[Any], context: Context
    ) -> AsyncIterator[Any]:
        try:
            self._inference.authenticate(metadata_of(context))
        except (Unauthenticated, Forbidden, InvalidInput) as error:
            await abort(context, error)
        async for answer in self._open.ServerReflectionInfo(request_iterator, context):
            yield answer


@asynccontextmanager
async def serve_grpc(
    inference: Inference,
    catalogue: Catalogue,
    *,
    address: str,
    readiness: Callable[[], list[str]],
    grace: timedelta,
    connections_max: int,
    bounded: bool = False,
) -> AsyncIterator[int]:
    """Serve while the context is open; yields the bound port.

    `bounded`: the native front only passes on, and grpcio serves the unary methods, too.

    Raises RuntimeError when the address cannot be bound. On leaving, calls and
    streams under way get `grace` to finish; their clients are told at once to
    take the next ones elsewhere, which nobody but `say_goodbye` tells them earlier.
    """
    unary = {**catalogue.handlers(), "ModelInfer": inference.model_infer}
    native, passed_on = ({}, unary) if bounded else (unary, {})
    server = NativeServer(
        address,
        {f"/{SERVICE}/{name}": handler for name, handler in native.items()},
        message_bytes_max=MAX_FRAME_PAYLOAD_BYTES,
        **_LIMITS,
    )
    status = _HealthServicer()
    fallback = _fallback(inference, passed_on, status)
    async with behind(fallback) as socket:
        server.start(socket)
        reporter = asyncio.create_task(_report_health(status, readiness), name="grpc-health")
        keeping_out = keep_out(server.connections, connections_max, server.served)
        doorman = asyncio.create_task(keeping_out, name="grpc-crowd")
        try:
            yield server.port
        finally:
            await end([reporter, doorman])
            await _leave(server, fallback, status, grace)


async def _leave(
    server: NativeServer, fallback: grpc.aio.Server, status: Any, grace: timedelta
) -> None:
    try:
        await status.enter_graceful_shutdown()
        await say_goodbye(server.port, 0.0)
    finally:
        await asyncio.gather(server.finish(grace), fallback.stop(grace.total_seconds()))
        await server.close()


def _fallback(inference: Inference, unary: Mapping[str, Handler], status: Any) -> grpc.aio.Server:
    """These, and everything that is not unary, or rarely called: streams, health, reflection."""
    server: Any = grpc.aio.server(options=_FALLBACK_OPTIONS)
    stream = grpc.stream_stream_rpc_method_handler(inference.model_stream_infer)
    server.add_registered_method_handlers(SERVICE, {"ModelStreamInfer": stream, **on_grpcio(unary)})
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
        _GuardedReflection(inference, names), server
    )
    return server


async def _report_health(status: Any, readiness: Callable[[], list[str]]) -> None:
    statuses = health_pb2.HealthCheckResponse
    while True:
        now = statuses.NOT_SERVING if readiness() else statuses.SERVING
        for service in ("", SERVICE):
            await status.set(service, now)
        await asyncio.sleep(rest_s(_HEALTH_EVERY_S))
