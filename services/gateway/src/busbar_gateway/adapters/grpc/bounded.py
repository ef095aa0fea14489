"""Unary methods on the grpcio server, which the native front only passes on to.

grpcio refuses a message as soon as it is known to be too large, inflates none
further than that, and takes deflate. The native front does neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc

from busbar_gateway.adapters.grpc.native import Call, Handler
from busbar_gateway.adapters.grpc.statuses import Context, Metadata, metadata_of

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class _Held:
    """Takes how a call ends as the native front does, and keeps it for grpcio."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._payload: bytes | None = None
        self._failure: tuple[grpc.StatusCode, str] | None = None
        self._trailing: Metadata = ()

    def respond(
        self, call_id: int, payload: bytes, initial: Metadata | None, trailing: Metadata
    ) -> bool:
        """As NativeGrpcFront.respond."""
        del call_id, initial
        if self._context.cancelled():
            return False
        self._payload, self._trailing = payload, trailing
        return True

    def fail(self, call_id: int, code: int, message: str, trailing: Metadata) -> bool:
        """As NativeGrpcFront.fail."""
        del call_id
        self._failure, self._trailing = (_CODES[code], message), trailing
        return not self._context.cancelled()

    async def end(self) -> bytes | None:
        """Return the answer, or abort the call."""
        if self._failure is not None:
            await self._context.abort(*self._failure, tuple(self._trailing))
        self._context.set_trailing_metadata(tuple(self._trailing))
        return self._payload


def on_grpcio(handlers: Mapping[str, Handler]) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """The same methods for a grpcio server."""
    return {
        name: grpc.unary_unary_rpc_method_handler(_behaviour(handler))
        for name, handler in handlers.items()
    }


def _behaviour(handler: Handler) -> Any:
    async def answer(payload: bytes, context: Context) -> bytes | None:
        held = _Held(context)
        call = Call(held, 0, metadata_of(context), context.time_remaining())
        try:
            await handler(payload, call)
        except Exception as error:  # noqa: BLE001
            call.fail(error)
        return await held.end()

    return answer
