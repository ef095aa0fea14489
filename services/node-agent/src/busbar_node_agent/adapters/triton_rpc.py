"""Triton's gRPC interface; payloads pass through as the bytes they are."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

# Triton is the only process we start, and it never calls into gRPC before its own exec.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

import grpc
import grpc.aio
from busbar_messaging.topology import MAX_FRAME_PAYLOAD_BYTES
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2

from busbar_node_agent.adapters.http2 import Http2Connection, header_block
from busbar_node_agent.domain.verdicts import refusal_code
from busbar_node_agent.usecases.lane import TritonRefused

_SERVICE = "/inference.GRPCInferenceService/"
_RECEIVE_BYTES_MAX = MAX_FRAME_PAYLOAD_BYTES + 64 * 1024
_CHANNEL_OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", _RECEIVE_BYTES_MAX),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
# Without it a model's error in a stream comes as text only, with no status code.
_STATUS_IN_STREAMS = ("triton_grpc_error", "true")

# Triton 2.51 takes the traceparent for a C string and ignores one that no NUL follows. In an HPACK
# block the next thing after it may be a literal header without indexing, which begins with NUL.
# It helps where gRPC does not copy the value, which is most of the time.
_TRACE_END = ("x-trace-end", "1")
_TRACE_END_BLOCK = b"\x00" + b"".join(bytes([len(text)]) + text.encode() for text in _TRACE_END)


class TritonRpc:
    """One connection to one run of Triton. Every call raises TritonRefused."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._connection: Http2Connection | None = None
        self._connecting = asyncio.Lock()
        self._closed = False
        self._heads: dict[str, bytes] = {}
        self._channel: grpc.aio.Channel | None = None
        """Made for the first stream: its threads wake up even when there is nothing to do."""

    async def close(self) -> None:
        """Cancel what is being called and disconnect."""
        self._closed = True
        if self._connection is not None:
            self._connection.close()
        if self._channel is not None:
            await self._channel.close()

    async def infer(self, request: bytes, timeout_s: float, traceparent: str) -> bytes:
        """See usecases.lane.Inference."""
        return await self._call("ModelInfer", request, timeout_s, traceparent)

    async def stream(
        self, request: bytes, timeout_s: float, traceparent: str
    ) -> AsyncGenerator[bytes, None]:
        """See usecases.lane.Inference."""
        metadata: list[tuple[str, str]] = [_STATUS_IN_STREAMS]
        if traceparent:
            metadata += [("traceparent", traceparent), _TRACE_END]
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self.address, options=_CHANNEL_OPTIONS)
        method = self._channel.stream_stream(f"{_SERVICE}ModelStreamInfer")
        call = method(timeout=timeout_s, metadata=metadata)
        try:
            with _translated():
                await call.write(request)
                await call.done_writing()
                async for raw in call:
                    response = service_pb2.ModelStreamInferResponse.FromString(raw)
                    if response.error_message:
                        refusal = response.error_message
                        raise TritonRefused(refusal_code(refusal), refusal)
                    yield response.infer_response.SerializeToString()
                if (code := await call.code()) is not grpc.StatusCode.OK:
                    raise TritonRefused(code.name, await call.details() or "")
        finally:
            call.cancel()

    async def live(self, timeout_s: float) -> bool:
        """Whether the server answers and calls itself live."""
        request = service_pb2.ServerLiveRequest()
        answer = await self._ask("ServerLive", request, timeout_s)
        return service_pb2.ServerLiveResponse.FromString(answer).live

    async def model_ready(self, model: str, timeout_s: float) -> bool:
        """Whether the model is loaded."""
        answer = await self._ask("ModelReady", service_pb2.ModelReadyRequest(name=model), timeout_s)
        return service_pb2.ModelReadyResponse.FromString(answer).ready

    async def load(self, model: str, timeout_s: float) -> None:
        """Load (again) what the repository holds under this name."""
        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        await self._ask("RepositoryModelLoad", request, timeout_s)

    async def unload(self, model: str, timeout_s: float) -> None:
        """Ask to unload; Triton goes on unloading after it has answered."""
        request = service_pb2.RepositoryModelUnloadRequest(model_name=model)
        await self._ask("RepositoryModelUnload", request, timeout_s)

    async def states(self, timeout_s: float) -> dict[str, str]:
        """State of every model in the repository, such as "READY"; "" for never loaded."""
        answer = await self._ask("RepositoryIndex", service_pb2.RepositoryIndexRequest(), timeout_s)
        index = service_pb2.RepositoryIndexResponse.FromString(answer)
        return {model.name: model.state for model in index.models}

    async def metadata(self, model: str, timeout_s: float) -> bytes:
        """Serialized ModelMetadataResponse."""
        request = service_pb2.ModelMetadataRequest(name=model)
        return await self._ask("ModelMetadata", request, timeout_s)

    async def config(self, model: str, timeout_s: float) -> bytes:
        """Serialized ModelConfigResponse."""
        request = service_pb2.ModelConfigRequest(name=model)
        return await self._ask("ModelConfig", request, timeout_s)

    async def _connect(self, timeout_s: float) -> Http2Connection:
        """The connection that carries ModelInfer, made anew when it was lost or used up."""
        host, _, port = self.address.rpartition(":")
        async with self._connecting:
            if self._closed:
                raise TritonRefused("UNAVAILABLE", "the connection to Triton was closed")
            if self._connection is None or self._connection.closed:
                connecting = asyncio.get_running_loop().create_connection(
                    lambda: Http2Connection(_RECEIVE_BYTES_MAX), host, int(port)
                )
                try:
                    _, connection = await asyncio.wait_for(connecting, timeout_s)
                except (OSError, TimeoutError) as error:
                    raise TritonRefused("UNAVAILABLE", f"no connection: {error!r}") from None
                self._connection = connection
                if self._closed:  # meanwhile; the call that asked for it fails as it starts
                    connection.close()
            return self._connection

    async def _ask(self, method: str, request: Message, timeout_s: float) -> bytes:
        return await self._call(method, request.SerializeToString(), timeout_s)

    async def _call(
        self, method: str, request: bytes, timeout_s: float, traceparent: str = ""
    ) -> bytes:
        connection = self._connection
        if connection is None or connection.closed:
            connection = await self._connect(timeout_s)
        head = self._heads.get(method) or self._head(method)
        if traceparent:
            head += header_block({"traceparent": traceparent}) + _TRACE_END_BLOCK
        stream_id, answer = connection.start(head, request)
        expiry = answer.get_loop().call_later(timeout_s, _expire, answer)
        try:
            return await answer
        finally:
            expiry.cancel()
            connection.cancel(stream_id)

    def _head(self, method: str) -> bytes:
        head = self._heads[method] = header_block(
            {
                ":method": "POST",
                ":scheme": "http",
                ":path": f"{_SERVICE}{method}",
                ":authority": self.address,
                "te": "trailers",
                "content-type": "application/grpc",
                "user-agent": "busbar-node-agent",
            }
        )
        return head


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
        raise _refused(error) from None


def _expire(answer: asyncio.Future[bytes]) -> None:
    if not answer.done():
        answer.set_exception(TritonRefused("DEADLINE_EXCEEDED", "Deadline Exceeded"))


def _refused(error: grpc.aio.AioRpcError | asyncio.CancelledError) -> BaseException:
    """Closing a channel cancels its calls, which looks as if somebody cancelled the caller."""
    if isinstance(error, grpc.aio.AioRpcError):
        return TritonRefused(error.code().name, error.details() or "")
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        return error
    return TritonRefused("UNAVAILABLE", "the connection to Triton was closed")
