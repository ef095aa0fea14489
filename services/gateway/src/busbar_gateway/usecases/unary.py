"""An answer of one response."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from busbar_gateway.usecases.calls import Answer
from busbar_gateway.usecases.charging import Delivered
from busbar_gateway.usecases.served import Served


class Unary:
    """`async with` yields the answer, charged and durable; see ServesRequests.infer."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._charge: Any = None

    async def __aenter__(self) -> Answer:
        served = self._served
        try:
            answer = await self._answer()
            if served.call.may_charge is not None:
                await served.call.may_charge()
            self._charge = await served.commit()
        except BaseException as error:
            served.end(error)
            raise
        served.first_byte_unix_ns = time.time_ns()
        return answer

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave(error)

    def handing_over(self) -> None:
        """As in AnswerStream."""
        self._served.collaborators.usage.delivered(self._charge)

    def leave(self, error: BaseException | None) -> None:
        """What leaving the context does, for edges that learn of the delivery by a callback.

        None means that the answer was handed to the customer.
        """
        usage = self._served.collaborators.usage
        self._served.judge_node(self._served.delivered.node, error)
        if error is None:
            usage.delivered(self._charge)
        else:
            usage.take_back(self._charge, "the answer was not delivered")
            self._served.not_charged()
        self._served.end(error)

    async def _answer(self) -> Answer:
        served = self._served
        try:
            dispatch = await served.start(streamed=False)
            finished = await dispatch.finished()
            payload = finished.payload
            if served.call.as_asked is not None:
                payload = served.call.as_asked(payload)
            done = Delivered.of(finished, len(payload), dispatch.node, dispatch.attempt)
            served.delivered = done
            served.used(done.input_tokens, done.output_tokens, done.compute_us)
        finally:
            served.stop()
        usage = finished.usage
        return Answer(payload, usage.input_tokens, usage.output_tokens, self.handing_over)
