"""OTLP over gRPC: TraceService/Export."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import grpc
import grpc.aio
from busbar_errors import Rejected

from busbar_telemetry.adapters.otlp_decoding import parse_protobuf
from busbar_telemetry.adapters.otlp_http import BODY_BYTES_MAX
from busbar_telemetry.adapters.otlp_intake import SpanIntake

_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
_CONCURRENT_RPCS_MAX = 32
_GRACE_S = 2.0


@contextlib.asynccontextmanager
async def serve_otlp_grpc(intake: SpanIntake, host: str, port: int) -> AsyncIterator[int]:
    """Serve until left; yields the bound port. Raises OSError when it is taken."""

    async def export(body: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        try:
            return intake.accept(parse_protobuf(body)).SerializeToString()
        except Rejected as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, intake.malformed(error))

    server = grpc.aio.server(
        maximum_concurrent_rpcs=_CONCURRENT_RPCS_MAX,
        options=[("grpc.max_receive_message_length", BODY_BYTES_MAX), ("grpc.so_reuseport", 0)],
    )
    # Bytes come through unparsed: gRPC's own parsing would answer INTERNAL to what is malformed.
    handler = grpc.unary_unary_rpc_method_handler(export)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_SERVICE, {"Export": handler}),)
    )
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"cannot listen for OTLP/gRPC on {host}:{port}: {error}") from error
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(_GRACE_S)
