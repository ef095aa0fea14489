"""Serving one request: admit, dispatch, answer, charge.

The edges translate a protocol into an `InferenceCall`, use `Serving.infer` or
`Serving.stream`, and write bytes while the context is open.
"""

from __future__ import annotations

from busbar_gateway.usecases.calls import (
    Answer,
    AnswerStream,
    Chunk,
    InferenceCall,
    RefusedCall,
    ServesRequests,
)
from busbar_gateway.usecases.served import Collaborators, Served
from busbar_gateway.usecases.streamed import Streamed
from busbar_gateway.usecases.unary import Unary

__all__ = ["Answer", "AnswerStream", "Chunk", "InferenceCall", "ServesRequests", "Serving"]


class Serving:
    """Serves requests; `ServesRequests` says what it promises."""

    def __init__(self, collaborators: Collaborators) -> None:
        self._with = collaborators

    def infer(self, call: InferenceCall) -> Unary:
        """Answer with one response."""
        return Unary(Served(self._with, call))

    def stream(self, call: InferenceCall) -> Streamed:
        """Answer with many responses."""
        return Streamed(Served(self._with, call))

    def refused(self, call: RefusedCall, error: Exception) -> None:
        """Keep the trace of a request that is not going to be served, if it is to have one."""
        self._with.tracing.refused(call, error)
