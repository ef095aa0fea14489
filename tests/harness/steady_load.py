"""A steady mixed load of short requests and streams, each accounted for.

Closed loop: a fixed number of clients each send, wait, note what happened and
send again. Every request ends in the log exactly once, answered or failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import numpy as np
from tritonclient.grpc import service_pb2

from harness.polling import eventually

DEADLINE_S = 10.0
STREAM_DEADLINE_S = 60.0
"""Long enough for a stream to wait for its node and then be whole: who leaves before that pays for
what came. A chat names no deadline, and gateways let it take minutes."""
_OVERRUN_S = 2.0
GRPC_CLIENTS = 6
_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_STREAM_METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
_ANSWERS, _ANSWER_EVERY_MS = 20, 50
_TOKENS = 200


class BrokenAnswerError(Exception):
    """An answer that came, but not whole or not right."""


@dataclass(frozen=True)
class Ended:
    """One request: when it ended, how long it took, and how it ended."""

    at: float
    took_s: float
    request_id: str
    error: str
    deadline_s: float = DEADLINE_S

    @property
    def answered(self) -> bool:
        return not self.error


@dataclass
class LoadLog:
    """Every request of one load."""

    ended: list[Ended] = field(default_factory=list[Ended])

    @property
    def answered(self) -> list[Ended]:
        return [request for request in self.ended if request.answered]

    @property
    def failed(self) -> list[Ended]:
        return [request for request in self.ended if not request.answered]

    async def goes_on(self, count: int = 30) -> None:
        """Wait until so many requests that are sent from now on are answered."""
        since = time.monotonic()

        async def answered() -> int:
            return self.answered_since(since)

        await eventually(answered, within_s=60, what="answers", until=lambda n: n >= count)

    def answered_since(self, at: float) -> int:
        """Requests answered that were sent after `at` (monotonic seconds)."""
        return sum(1 for r in self.answered if r.at - r.took_s >= at)

    def recovery_s(self, fault_at: float) -> float:
        """Seconds from the fault to the first answer of a request sent after the last doomed one.

        A request that was sent into the fault may use its whole deadline to fail.
        """
        doomed = max((r.at - r.took_s for r in self.failed if r.at >= fault_at), default=fault_at)
        good = [r.at for r in self.answered if r.at - r.took_s >= max(doomed, fault_at)]
        return min(good, default=float("inf")) - fault_at

    def longest_gap_s(self, since: float) -> float:
        """Longest time without any answer after `since`."""
        times = sorted(r.at for r in self.answered if r.at >= since)
        return max((b - a for a, b in zip([since, *times], times, strict=False)), default=0.0)

    def summary(self) -> str:
        """For people: counts and the reasons of failures."""
        reasons = Counter(r.error.split(":")[0] for r in self.failed)
        return f"{len(self.answered)} answered, {len(self.failed)} failed {dict(reasons)}"

    def assert_clear_and_in_time(self) -> None:
        """Nothing was left hanging: each request ended within its deadline and a little."""
        late = [r for r in self.ended if r.took_s > r.deadline_s + _OVERRUN_S]
        unclear = [r for r in self.failed if not r.error.strip()]
        assert late == [], f"ended too late: {late[:3]}"
        assert unclear == [], f"failed without a reason: {unclear[:3]}"


_FAILURES = (grpc.aio.AioRpcError, httpx.HTTPError, BrokenAnswerError, TimeoutError)
Send = Callable[[], Awaitable[str]]
"""Sends one request, returns its request id; raises when it failed."""


def _repeat() -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="repeat")
    for name, datatype, values in (
        ("IN", "INT32", np.arange(_ANSWERS, dtype=np.int32)),
        ("DELAY", "UINT32", np.full(_ANSWERS, _ANSWER_EVERY_MS, dtype=np.uint32)),
        ("WAIT", "UINT32", np.zeros(1, dtype=np.uint32)),
    ):
        request.inputs.add(name=name, datatype=datatype, shape=[len(values)])
        request.raw_input_contents.append(values.tobytes())
    return request


class Clients:
    """Each kind of request to one address, as a customer sends it."""

    def __init__(
        self, grpc_address: str, http_url: str, key: str, *, deadline_s: float = DEADLINE_S
    ) -> None:
        self.deadline_s = deadline_s
        self._address = grpc_address
        self._metadata = (("authorization", f"Bearer {key}"),)
        self._channel = self._new_channel()
        self._http = httpx.AsyncClient(
            base_url=http_url,
            headers={"authorization": f"Bearer {key}"},
            timeout=deadline_s,
            trust_env=False,
            verify=False,
        )
        request = service_pb2.ModelInferRequest(model_name="echo-fp32")
        request.raw_input_contents.append(np.arange(16, dtype=np.float32).tobytes())
        request.inputs.add(name="INPUT0", datatype="FP32", shape=[16])
        self._body = request.SerializeToString()
        self.chat_tokens = _TOKENS
        self.stream_gaps: list[tuple[float, float]] = []
        """Of each chat that came to its end: when (monotonic seconds), its longest gap in seconds,
        that before its first piece included."""

    def longest_stream_gap_s(self, since: float) -> float:
        """Over the chats that ended after `since`."""
        return max((gap_s for at, gap_s in self.stream_gaps if at >= since), default=0.0)

    def _new_channel(self) -> grpc.aio.Channel:
        options = [("grpc.max_reconnect_backoff_ms", 500), ("grpc.enable_retries", 0)]
        return grpc.aio.insecure_channel(self._address, options=options)

    async def tensors(self) -> str:
        """ModelInfer over gRPC; the echoed numbers are compared."""
        call = self._channel.unary_unary(_METHOD)(
            self._body, timeout=self.deadline_s, metadata=self._metadata, wait_for_ready=False
        )
        answer = service_pb2.ModelInferResponse.FromString(await call)
        assert answer.raw_output_contents[0] == np.arange(16, dtype=np.float32).tobytes()
        sent = [*(await call.initial_metadata()), *(await call.trailing_metadata())]
        return next(str(value) for name, value in sent if name == "x-request-id")

    async def embeddings(self) -> str:
        """POST /v1/embeddings."""
        body = {"model": "all-minilm-l6-v2", "input": "a steady hum of miners"}
        response = await self._http.post("/v1/embeddings", json=body)
        response.raise_for_status()
        assert len(response.json()["data"][0]["embedding"]) > 0
        return response.headers["x-request-id"]

    async def answers(self) -> str:
        """ModelStreamInfer over gRPC: a second of answers, all of them in order.

        This API tells nobody its request id: the id returned is empty.
        """
        call: Any = self._channel.stream_stream(_STREAM_METHOD)(
            timeout=STREAM_DEADLINE_S, metadata=self._metadata
        )
        await call.write(_repeat().SerializeToString())
        await call.done_writing()
        seen: list[int] = []
        async for message in call:
            answer = service_pb2.ModelStreamInferResponse.FromString(message)
            if answer.error_message:
                raise BrokenAnswerError(answer.error_message)
            outputs = answer.infer_response.raw_output_contents
            seen += [int.from_bytes(raw, "little") for raw in outputs[:1]]
        if seen != list(range(_ANSWERS)):
            raise BrokenAnswerError(f"answers {seen}")
        return ""

    async def chat(self) -> str:
        """POST /v1/chat/completions, streamed to its end."""
        body = {
            "model": "tiny-lm",
            "messages": [{"role": "user", "content": "Where does the money live?"}],
            "max_tokens": self.chat_tokens,
            "temperature": 2,  # it rambles, and does not come to an end by itself
            "seed": 1,
            "stream": True,
        }
        at = [time.monotonic()]
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            lines: list[str] = []
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    lines.append(line)
                    at.append(time.monotonic())
        gap_s = max((b - a for a, b in itertools.pairwise(at)), default=0.0)
        self.stream_gaps.append((at[-1], gap_s))
        if lines[-1:] != ["data: [DONE]"]:
            raise BrokenAnswerError(f"the stream ended with {lines[-1:]}")
        return answer.headers["x-request-id"]

    async def close(self) -> None:
        await self._channel.close()
        await self._http.aclose()


async def _client(
    send: Send, log: LoadLog, stopping: asyncio.Event, pause_s: float, deadline_s: float
) -> None:
    while not stopping.is_set():
        started, request_id, error = time.monotonic(), "", ""
        try:
            async with asyncio.timeout(deadline_s + _OVERRUN_S + 3):
                request_id = await send()
        except _FAILURES as failure:
            error = f"{type(failure).__name__}: {failure}"
        ended = time.monotonic()
        log.ended.append(Ended(ended, ended - started, request_id, error, deadline_s))
        if wait_s := max(pause_s, 0.1 if error else 0.0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), wait_s)


@contextlib.asynccontextmanager
async def steady_load(
    clients: Clients,
    *,
    grpc_clients: int = 6,
    http_clients: int = 2,
    streams_of_each: int = 0,
    chats: int = 0,
    pause_s: float = 0.0,
) -> AsyncIterator[LoadLog]:
    """Run the load inside the block; at its end every client finishes its request.

    Each waits `pause_s` between one request and the next.
    """
    log, stopping = LoadLog(), asyncio.Event()
    short: list[Send] = [
        *[clients.tensors] * grpc_clients,
        *[clients.embeddings] * http_clients,
    ]
    streams: list[Send] = [
        *[clients.answers, clients.chat] * streams_of_each,
        *[clients.chat] * chats,
    ]
    sends = [(send, clients.deadline_s) for send in short]
    sends += [(send, STREAM_DEADLINE_S) for send in streams]
    tasks = [
        asyncio.create_task(_client(send, log, stopping, pause_s, deadline_s))
        for send, deadline_s in sends
    ]
    try:
        yield log
    finally:
        stopping.set()
        await asyncio.gather(*tasks)
