"""An answer of many responses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import structlog
from busbar_contracts.node.v1.work_pb2 import WorkFinished
from busbar_errors import Unavailable

from busbar_gateway.usecases.calls import Chunk
from busbar_gateway.usecases.charging import Delivered
from busbar_gateway.usecases.dispatch import Dispatch
from busbar_gateway.usecases.served import Served

log = structlog.get_logger()


class Streamed:
    """`async with` yields itself, to be iterated and settled; see ServesRequests.stream."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._dispatch: Dispatch | None = None
        self._handed = Delivered()
        """Up to the chunk that the edge has now."""
        self._delivered = Delivered()
        """Up to the chunk that the edge asked for the next one after, or said it handed over."""
        self._finished: WorkFinished | None = None
        self._charge: Any = None
        self._failure: BaseException | None = None

    async def __aenter__(self) -> Self:
        try:
            self._dispatch = await self._served.start(streamed=True)
        except BaseException as error:
            self._served.stop()
            self._served.end(error)
            raise
        return self

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        if not self._served.held_back:
            self._delivered = self._handed
        if self._finished is not None or self._charge is not None:
            raise StopAsyncIteration
        assert self._dispatch is not None
        try:
            step = await self._dispatch.next_chunk()
        except Exception as error:
            self._failure = error
            raise
        if isinstance(step, WorkFinished):
            self._end_of_work(step, self._dispatch)
            self._served.stop()
            raise StopAsyncIteration
        if self._served.first_byte_unix_ns is None:
            self._served.first_byte_unix_ns = time.time_ns()
        if self._served.call.as_asked is not None:
            step = replace(step, payload=self._served.call.as_asked(step.payload))
        handed = self._after(step, self._dispatch)
        self._served.used(step.input_tokens, step.output_tokens, step.compute_us)
        if not self._served.covers(handed):
            await self._cover(handed)
        self._handed, self._served.held_back = handed, False
        return step

    def handed_over(self) -> None:
        """Count the last chunk as delivered."""
        self._delivered = self._handed

    def holds_back(self) -> None:
        """As in AnswerStream."""
        self._served.held_back = True

    def handing_over(self) -> None:
        """As in AnswerStream."""
        self._served.collaborators.usage.delivered(self._charge)

    async def _cover(self, handed: Delivered) -> None:
        """Get the money for what comes; without it the answer ends with what was paid for."""
        try:
            await self._served.cover(handed, charged_before=self._charges_part)
        except Exception as error:
            self._charge_delivered()
            self._failure = error
            raise

    async def settle(self) -> None:
        """Commit the charge for everything yielded."""
        if self._charge is not None:
            return
        self._served.stop()
        if not self._served.covers(self._handed):
            await self._cover(self._handed)
        self._served.delivered = self._handed
        try:
            self._charge = await self._served.commit()
        except Exception as error:
            self._failure = error
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._served.stop()
        self._judge_node(error)
        self._take_back_what_is_left(error)
        if self._charge is None and self._customer_left(error) and not self._served.stays_charged:
            error = error or asyncio.CancelledError()
            self._charge_delivered()
        elif self._charge is None:
            error = self._failure or error
        else:
            self._served.collaborators.usage.delivered(self._charge)
        self._served.end(error)

    def _judge_node(self, error: BaseException | None) -> None:
        """The edge has read the answer, or could not."""
        if self._failure is None and self._handed.node:
            self._served.judge_node(self._handed.node, error)

    def _take_back_what_is_left(self, error: BaseException | None) -> None:
        """The charge of an answer of which the last did not leave is none."""
        charge, waits = self._charge, self._served.waits_for_charge
        if charge is None or error is None or not waits:
            return
        self._charge = None
        self._served.collaborators.usage.take_back(charge, "the answer was not delivered")
        self._served.not_charged()

    def _customer_left(self, error: BaseException | None) -> bool:
        if self._failure is not None or self._served.collaborators.stopping:
            return False
        return error is None or isinstance(error, (asyncio.CancelledError, GeneratorExit, OSError))

    @property
    def _charges_part(self) -> bool:
        """Whether what was delivered so far is charged although no more comes."""
        return not self._served.call.whole and self._delivered.response_bytes > 0

    def _charge_delivered(self) -> None:
        if not self._charges_part:
            return
        try:
            self._served.commit_abandoned(self._delivered)
        except Unavailable as error:
            request_id = self._served.call.request_id.hex()
            log.error("abandoned request not charged", request_id=request_id, reason=error.reason)  # noqa: TRY400

    def _after(self, chunk: Chunk, dispatch: Dispatch) -> Delivered:
        return Delivered(
            chunk.input_tokens,
            chunk.output_tokens,
            self._handed.response_bytes + len(chunk.payload),
            dispatch.node,
            dispatch.attempt,
            chunk.compute_us,
            chunk.cached_tokens,
        )

    def _end_of_work(self, finished: WorkFinished, dispatch: Dispatch) -> None:
        self._finished = finished
        self._handed = Delivered.of(
            finished, self._handed.response_bytes, dispatch.node, dispatch.attempt
        )
        done = self._handed
        self._served.used(done.input_tokens, done.output_tokens, done.compute_us)
