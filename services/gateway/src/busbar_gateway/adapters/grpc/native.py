"""Unary gRPC methods on pygrpc-native's front; every other method on a grpcio server behind it.

pygrpc-native also has a server with grpcio's interface, which builds a context
and runs a chain of coroutines for each call. Using the front itself costs a
third less, and it says whether an answer still found its client, which decides
about the charge.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import grpc
import structlog
from pygrpc_native import EVENT_CALL, NativeGrpcFront

from busbar_gateway.adapters.grpc.outgoing import all_taken
from busbar_gateway.adapters.grpc.sockets import Connections, Peer
from busbar_gateway.adapters.grpc.statuses import Metadata, named, status_of
from busbar_gateway.adapters.identity import new_request_id

log = structlog.get_logger()

_IO_THREADS = 1
_EVENTS_MAX = 64
_STOPS = "the gateway stops"
_DIRECTORY_PREFIX, _SOCKET_NAME = "busbar-grpc-", "fallback.sock"


class Front(Protocol):
    """What ends a call; the arguments are NativeGrpcFront's."""

    def respond(
        self, call_id: int, payload: bytes, initial: Metadata | None, trailing: Metadata, /
    ) -> bool:
        """Answer; False when the client is gone."""
        ...

    def fail(self, call_id: int, code: int, message: str, trailing: Metadata, /) -> bool:
        """End the call with that status; False when the client is gone."""
        ...


@dataclass(slots=True, eq=False)
class Call:
    """One unary call. Exactly one of `respond` and `fail` ends it."""

    front: Front
    call_id: int
    metadata: Metadata
    time_remaining_s: float | None
    """Until the client's deadline when the call arrived; None when it set none."""
    request_id: bytes = field(default_factory=new_request_id)
    """Every way to end the call tells it to the client."""

    def respond(self, payload: bytes) -> bool:
        """Answer; False when the client is gone."""
        return self.front.respond(self.call_id, payload, None, (named(self.request_id),))

    def fail(self, error: Exception) -> None:
        """End the call with the status that `error` has over gRPC."""
        status = status_of(error)
        self.refuse(status.code, status.reason, status.trailing)

    def refuse(self, code: grpc.StatusCode, reason: str, trailing: Metadata = ()) -> None:
        """End the call with this status."""
        number: int = code.value[0]
        self.front.fail(self.call_id, number, reason, [named(self.request_id), *trailing])


Handler = Callable[[bytes, Call], Awaitable[None]]
"""Takes the message and ends the call; what it raises becomes the call's status."""


class NativeServer:
    """Serves `handlers` by path. Runs between `start` and `close`."""

    def __init__(
        self,
        address: str,
        handlers: Mapping[str, Handler],
        *,
        message_bytes_max: int,
        **limits: Any,
    ) -> None:
        try:
            self._front = NativeGrpcFront(
                address,
                [(path, False) for path in handlers],
                io_threads=_IO_THREADS,
                call_details=True,
                **limits,
            )
            self.connections = Connections(self.port)
            """Those of its clients, for as long as it is not closed."""
        except OSError as error:
            raise RuntimeError(f"cannot serve gRPC at {address}: {error}") from error
        self._handlers: Sequence[Handler] = list(handlers.values())
        self._message_bytes_max = message_bytes_max
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._ends_s = 0.0

    @property
    def port(self) -> int:
        """The bound port."""
        return self._front.bound_port

    def served(self) -> set[Peer]:
        """Whose calls are in hand here, not on the server behind."""
        return {task.get_name() for task in self._tasks.values()}

    def start(self, fallback_socket: Path) -> None:
        """Serve; methods that are not handled here go to the server on that socket."""
        self._front.set_fallback(str(fallback_socket))
        self._front.start()
        threading.Thread(target=self._receive, name="grpc-receive", daemon=True).start()

    async def finish(self, grace: timedelta) -> None:
        """Refuse new calls and give those under way `grace` to end."""
        self._stopping = True
        self._ends_s = self._loop.time() + grace.total_seconds()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=grace.total_seconds())

    async def close(self) -> None:
        """Cancel what is left, and cut off whoever is still connected.

        What of the grace is left is for clients that take their answers slowly.
        """
        self._stopping = True
        left = list(self._tasks.values())
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        try:
            await all_taken(self.connections, self._ends_s - self._loop.time())
        except OSError as error:
            log.warning("last answers may be lost", reason=str(error))
        finally:
            self.connections.close()
            await self._loop.run_in_executor(None, self._front.close)

    def _receive(self) -> None:
        front = self._front
        while (events := front.recv_batch_details(_EVENTS_MAX)) is not None:
            try:
                self._loop.call_soon_threadsafe(self._take, events)
            except RuntimeError:  # the event loop was closed without close()
                front.close()
                return
            del events  # until the next call comes it would hold messages that were too large

    def _take(self, events: list[tuple[Any, ...]]) -> None:
        for kind, call_id, method, payload, _, details in events:
            if kind != EVENT_CALL:
                task = self._tasks.get(call_id)
                if task is not None:
                    task.cancel()
                continue
            call = Call(self._front, call_id, details[0], details[2])
            if self._stopping:
                call.refuse(grpc.StatusCode.UNAVAILABLE, _STOPS)
                continue
            if len(payload) > self._message_bytes_max:
                self._refuse_size(call, len(payload))
                continue
            handling = self._handle(self._handlers[method], payload, call)
            self._tasks[call_id] = self._loop.create_task(handling, name=details[1])

    async def _handle(self, handler: Handler, payload: bytes, call: Call) -> None:
        try:
            await handler(payload, call)
        except Exception as error:  # noqa: BLE001
            call.fail(error)
        except asyncio.CancelledError:
            if self._stopping:  # else the client is gone and nobody reads it
                call.refuse(grpc.StatusCode.UNAVAILABLE, _STOPS)
        finally:
            del self._tasks[call.call_id]

    def _refuse_size(self, call: Call, size: int) -> None:
        reason = f"the message has {size} bytes; at most {self._message_bytes_max} are taken"
        call.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)


@asynccontextmanager
async def behind(server: grpc.aio.Server) -> AsyncIterator[Path]:
    """Serve a grpcio server on a Unix socket of its own; yields the socket."""
    await asyncio.to_thread(_remove_what_killed_ones_left)
    directory = Path(tempfile.mkdtemp(prefix=_DIRECTORY_PREFIX))
    path = directory / _SOCKET_NAME
    try:
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        yield path
    finally:
        await server.stop(None)
        with suppress(OSError):
            shutil.rmtree(directory)


def _remove_what_killed_ones_left() -> None:
    """Remove the directories whose socket nobody listens on any more."""
    for path in Path(tempfile.gettempdir()).glob(f"{_DIRECTORY_PREFIX}*/{_SOCKET_NAME}"):
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(0)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                shutil.rmtree(path.parent)
