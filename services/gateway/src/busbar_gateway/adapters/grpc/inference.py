"""ModelInfer and ModelStreamInfer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import structlog
from busbar_errors import BusbarError
from tritonclient.grpc import service_pb2

from busbar_gateway.adapters.grpc.native import Call
from busbar_gateway.adapters.grpc.requests import check_request, check_size, read_request
from busbar_gateway.adapters.grpc.statuses import (
    Context,
    Metadata,
    abort,
    metadata_of,
    only_text_of,
    text_of,
)
from busbar_gateway.adapters.grpc.stream_messages import error_message, plain_answer, response
from busbar_gateway.adapters.grpc.turns import ChargedAhead, Turn, Turns
from busbar_gateway.adapters.identity import new_request_id
from busbar_gateway.adapters.key_ring import KeyRing
from busbar_gateway.adapters.model_response import read_response
from busbar_gateway.adapters.route_table import RouteTable
from busbar_gateway.adapters.token_counts import ask_for_counts, text_bytes
from busbar_gateway.domain.failures import (
    Forbidden,
    InvalidInput,
    Unauthenticated,
    Unsupported,
    answer_for,
)
from busbar_gateway.domain.routes import Caller, Route
from busbar_gateway.usecases.calls import InferenceCall, RefusedCall
from busbar_gateway.usecases.serving import Serving

log = structlog.get_logger()

_IDEMPOTENCY_KEY = "idempotency-key"

pb: Any = service_pb2  # the generated module has no types

PIPELINED_MAX = 16
"""Requests of one ModelStreamInfer that may be under way at once, answered and held back for
their turn included."""
_FINAL_RESPONSE = b"triton_final_response\x12\x02\x08\x01"
"""Parameter of the last response: key and value (bool_param true) as they are serialized. Most
messages are without, and need not be parsed."""
_NO_DEADLINE_S = 10 * 365 * 86_400
"""Servers say some huge number, or nothing, when the client set no deadline."""


class ClientGone(ConnectionError):
    """The client was gone before its answer was written."""


class Inference:
    """The calls that cost something."""

    def __init__(
        self,
        serving: Serving,
        keys: KeyRing,
        routes: RouteTable,
        *,
        default_timeout_s: float,
        timeout_max_s: float,
    ) -> None:
        self._serving = serving
        self._keys = keys
        self._routes = routes
        self._default_timeout_s = default_timeout_s
        self._timeout_max_s = timeout_max_s
        self._charged_ahead = ChargedAhead()

    async def model_infer(self, payload: bytes, call: Call) -> None:
        """ModelInfer, on bytes."""
        try:
            caller = self.authenticate(call.metadata)
            _refuse_idempotency_key(call.metadata)
            inference = self._call(
                payload,
                caller,
                metadata=call.metadata,
                remaining_s=call.time_remaining_s,
                request_id=call.request_id,
                api="infer",
            )
            async with self._serving.infer(inference) as answer:
                answer.handing_over()
                _deliver(call, answer.payload)
        except ClientGone:
            return
        except Exception as error:  # noqa: BLE001
            call.fail(error)

    def authenticate(self, metadata: Metadata) -> Caller:
        """Return the caller by the call's metadata.

        Raises Unauthenticated or Forbidden, and InvalidInput for two credentials.
        """
        return self._keys.authenticate(only_text_of(metadata, "authorization"))

    async def model_stream_infer(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """ModelStreamInfer, on bytes, for the grpcio server.

        Each message is a request of its own, and the key may have been revoked since the last:
        then nothing more is taken, what is under way is answered, and the call ends as one that
        began with this key would.
        """
        metadata = metadata_of(context)
        try:
            self.authenticate(metadata)
            _refuse_idempotency_key(metadata)
        except (Unauthenticated, Forbidden, InvalidInput) as error:
            await abort(context, error)
        under_way = asyncio.Semaphore(PIPELINED_MAX)
        writer = _Writer(context)

        async def serve(asked: _Asked) -> None:
            try:
                await self._one_of_stream(asked, context, writer)
            except ClientGone:
                pass  # grpcio cancels the whole call
            except Exception as error:  # noqa: BLE001
                with suppress(ClientGone):
                    await self._refuse(asked, error, writer)
            finally:
                writer.turns.leave(asked.turn)
                self._charged_ahead.left(asked.turn)
                under_way.release()

        refusal: BusbarError | None = None
        async with asyncio.TaskGroup() as tasks:
            async for payload in requests:
                await under_way.acquire()
                try:
                    caller = self.authenticate(metadata)
                except (Unauthenticated, Forbidden) as error:
                    refusal = error
                    break
                tasks.create_task(serve(_Asked(payload, caller, writer.turns.join())))
        if refusal is not None:
            await abort(context, refusal)

    async def _one_of_stream(
        self,
        asked: _Asked,
        context: Context,
        writer: _Writer,
    ) -> None:
        turn = asked.turn
        call = self._call(
            asked.payload,
            asked.caller,
            metadata=metadata_of(context),
            remaining_s=context.time_remaining(),
            request_id=asked.request_id,
            api="stream",
        )
        asked.accepted = True
        if not _is_decoupled(call.route):
            call.may_charge = partial(self._charged_ahead.may_charge, turn)
            async with self._serving.infer(call) as answer:
                await turn.come.wait()
                plain = plain_answer(answer.payload, call.request_id)
                left = await writer.hand_over(plain, answer.handing_over)
            if left is not None:
                raise left
            return
        writer.turns.leave(turn)
        await self._all_of_it(call, writer)

    async def _refuse(self, asked: _Asked, error: Exception, writer: _Writer) -> None:
        """Say that a request failed, in its turn if it had one; raises ClientGone."""
        try:
            request = read_request(asked.payload)
        except InvalidInput:
            request = pb.ModelInferRequest()
        if not self._asks_decoupled(asked.caller, request.model_name):
            await asked.turn.come.wait()
        message = error_message(error, request.id, asked.request_id, accepted=asked.accepted)
        await writer.write(message)

    def _asks_decoupled(self, caller: Caller, model_name: str) -> bool:
        try:
            return _is_decoupled(self._routes.find(caller, model_name))
        except BusbarError:
            return False

    async def _all_of_it(self, call: InferenceCall, writer: _Writer) -> None:
        """Pass on what a decoupled model says; what it ends with leaves when it is charged."""
        async with self._serving.stream(call) as stream:
            last = b""
            async for chunk in stream:
                if last:  # it says that it was the last one, and was not
                    await writer.write(response(last))
                    last = b""
                final = _as_final(chunk.payload)
                if final is not None:
                    last = chunk.payload
                    if final.outputs:
                        stream.holds_back()
                    continue
                left = await writer.hand_over(response(chunk.payload))
                if left is not None:
                    stream.handed_over()
                    raise left
            await stream.settle()
            if last:
                left = await writer.hand_over(response(last), stream.handing_over)
            else:
                stream.handing_over()
                left = None
        if left is not None:
            raise left

    def _call(
        self,
        payload: bytes,
        caller: Caller,
        *,
        metadata: Metadata,
        remaining_s: float | None,
        request_id: bytes,
        api: str,
    ) -> InferenceCall:
        now = time.time_ns()
        try:
            request, route = self._checked(payload, caller, api)
            read_bytes = text_bytes(route, request)
            as_asked = ask_for_counts(route, request)
        except BusbarError as error:
            refused = RefusedCall(
                request_id=request_id,
                caller=caller,
                api=f"kserve.grpc.{api}",
                received_unix_ns=now,
                http_status=answer_for(error).http_status,
                traceparent=text_of(metadata, "traceparent") or "",
            )
            self._serving.refused(refused, error)
            raise
        timeout_s = self._timeout_s(remaining_s)
        return InferenceCall(
            request_id=request_id,
            caller=caller,
            route=route,
            payload=payload if as_asked is None else request.SerializeToString(),
            api=f"kserve.grpc.{api}",
            received_unix_ns=now,
            deadline=time.monotonic() + timeout_s,
            traceparent=text_of(metadata, "traceparent") or "",
            request_bytes=len(payload),
            text_bytes=read_bytes,
            as_asked=as_asked,
        )

    def _checked(self, payload: bytes, caller: Caller, api: str) -> tuple[Any, Route]:
        request = read_request(payload)
        route = self._routes.find(caller, request.model_name)
        check_size(route, len(payload))
        check_request(route, request)
        if api == "infer":
            _refuse_decoupled(route)
        return request, route

    def _timeout_s(self, remaining_s: float | None) -> float:
        """The client's deadline, bounded; clients without one get the default."""
        if remaining_s is None or remaining_s > _NO_DEADLINE_S:
            return self._default_timeout_s
        return min(remaining_s, self._timeout_max_s)


def _refuse_idempotency_key(metadata: Metadata) -> None:
    """Decision 18 promises nothing over gRPC: who believes it does would be charged twice."""
    if text_of(metadata, _IDEMPOTENCY_KEY) is not None:
        raise InvalidInput(
            f"{_IDEMPOTENCY_KEY} is not supported over gRPC, where a repeat is charged again: "
            "leave it out, or send the request over HTTP"
        )


@dataclass(slots=True)
class _Asked:
    """One message of a stream."""

    payload: bytes
    caller: Caller
    turn: Turn
    request_id: bytes = field(default_factory=new_request_id)
    accepted: bool = False
    """Whether nothing was wrong with the request itself."""


class _Writer:
    """Writes to the one stream that several requests share."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._writing = asyncio.Lock()
        self.turns = Turns()
        """Whose answer is one response waits for its turn, as with Triton; whose may be many says
        what it has to say in between."""

    async def write(self, message: bytes) -> None:
        """Write; raises ClientGone, or CancelledError, when the call ended before the write."""
        left = await self.hand_over(message)
        if left is not None:
            raise left

    async def hand_over(
        self, message: bytes, handing_over: Callable[[], None] | None = None
    ) -> ClientGone | asyncio.CancelledError | None:
        """Write; return how the call ended, if it ended while grpcio had the message.

        A client may have read the message all the same: it can leave before
        the server hears that the write has ended, and then hears either.
        `handing_over` is called right before grpcio gets it, when others have written theirs.
        """
        async with self._writing:
            if handing_over is not None:
                handing_over()
            try:
                await self._context.write(message)
            except asyncio.CancelledError as cancelled:
                return cancelled
            except grpc.aio.BaseError as error:
                return ClientGone(str(error))
        return None


def _deliver(call: Call, payload: bytes) -> None:
    if not call.respond(payload):
        raise ClientGone


def _as_final(payload: bytes) -> Any:
    """Return the response that says that it is the last one; None for any other.

    The bytes alone say nothing: a customer may well have them in a tensor.
    """
    if _FINAL_RESPONSE not in payload:
        return None
    response = read_response(payload)
    return response if response.parameters["triton_final_response"].bool_param else None


def _is_decoupled(route: Route) -> bool:
    return route.signature is not None and route.signature.decoupled


def _refuse_decoupled(route: Route) -> None:
    if _is_decoupled(route):
        raise Unsupported("this model answers with any number of responses: use ModelStreamInfer")
