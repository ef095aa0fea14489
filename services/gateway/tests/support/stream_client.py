"""A client of ModelStreamInfer in this process, of which a test sees each write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from busbar_contracts.node.v1 import work_pb2
from gateway_harness import AUTH, Behaviour, Platform, Say, echo, inference_of, pb, request


def asked_as(work: work_pb2.InferenceWork) -> str:
    return pb.ModelInferRequest.FromString(work.payload).id


def numbered(name: str, number: int) -> bytes:
    message = pb.ModelInferRequest.FromString(request(name))
    message.id = str(number)
    return message.SerializeToString()


def held(*numbers: int, until: asyncio.Event) -> Behaviour:
    """Works on these until the event, on all others at once."""

    async def behave(work: work_pb2.InferenceWork, say: Say) -> None:
        if int(asked_as(work)) in numbers:
            await until.wait()
        await echo(work, say)

    return behave


class Client:
    """grpcio's context of a call whose client reads as it comes, and its requests."""

    def __init__(self, platform: Platform) -> None:
        self.inference = inference_of(platform.gateway, platform.serving)
        self.answers: list[Any] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.uncertain: list[bool] = []
        """What would be voided after a kill, as each answer is handed over."""
        self._usage = platform.gateway.usage

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return list(AUTH)

    def time_remaining(self) -> None:
        return None

    async def write(self, message: bytes) -> None:
        self.uncertain.append(not self._usage.idle)
        await self.reads.wait()
        self.answers.append(pb.ModelStreamInferResponse.FromString(message))

    def ask(self, *messages: bytes) -> asyncio.Task[None]:
        async def all_of_them() -> AsyncIterator[bytes]:
            for message in messages:
                yield message

        context: Any = self
        return asyncio.create_task(self.inference.model_stream_infer(all_of_them(), context))

    @property
    def ids(self) -> list[str]:
        return [a.error_message or a.infer_response.id for a in self.answers]
