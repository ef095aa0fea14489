"""What /v1/chat/completions and /v1/completions share: one prompt in, one choice out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from busbar_gateway.adapters.http.errors import BadParameter, blamed_on
from busbar_gateway.adapters.http.exchange import Exchange
from busbar_gateway.adapters.http.generation import (
    Generation,
    Sampling,
)
from busbar_gateway.adapters.http.openai_schemas import StreamOptions
from busbar_gateway.adapters.http.services import Services
from busbar_gateway.adapters.http.sse import EventStream, read_within
from busbar_gateway.domain.routes import Route

Choice = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AnswerShape:
    """How an API writes a choice; each returns the `choices` element without its index."""

    api: str
    prompt_param: str
    """The field that holds what the model reads."""
    id_prefix: str
    whole_object: str
    chunk_object: str
    whole: Callable[[str, str | None], Choice]
    """From the text and the finish reason."""
    piece: Callable[[str], Choice]
    """From a piece of text."""
    opening: Choice | None
    """What the first event says before there is text; None for nothing."""
    closing: Callable[[str | None], Choice]
    """From the finish reason."""


@dataclass(frozen=True, slots=True)
class Job:
    """One generation, ready to run."""

    route: Route
    prompt: str
    sampling: Sampling
    include_usage: bool


def wants_usage(stream: bool | None, options: StreamOptions | None) -> bool:  # noqa: FBT001
    """Whether a stream ends with a usage chunk; raise when options come without a stream."""
    if options is None:
        return False
    if not stream:
        raise BadParameter(
            "'stream_options' is only allowed when 'stream' is true.",
            "stream_options",
            "invalid_value",
        )
    return bool(options.include_usage)


async def answer_whole(
    services: Services, exchange: Exchange, job: Job, shape: AnswerShape
) -> None:
    """Generate, charge, then answer with one document."""
    generation = Generation(job.route, job.prompt, job.sampling, stream=False)
    timeout_s = exchange.limits.generation_timeout_s
    most = job.sampling.max_tokens or 0
    call = exchange.call(
        job.route,
        generation.begin(),
        shape.api,
        timeout_s,
        whole=True,
        output_tokens_max=most,
        text_bytes=generation.prompt_bytes,
        resumable=generation,
    )
    async with exchange.cancelled_when_gone(), services.serving.stream(call) as answer:
        with blamed_on(shape.prompt_param):
            pieces = [piece async for piece in generation.text(answer)]
        await answer.settle()
        exchange.cycle.before_last = answer.handing_over
        document = _head(exchange, job, shape, shape.whole_object)
        choice = shape.whole("".join(pieces), generation.finish_reason)
        document["choices"] = [{"index": 0, **choice}]
        document["usage"] = generation.usage()
        await exchange.respond_json(document)


async def answer_stream(
    services: Services, exchange: Exchange, job: Job, shape: AnswerShape
) -> None:
    """Send events as text comes; the last ones only when the charge is durable."""
    generation = Generation(job.route, job.prompt, job.sampling, stream=True)
    timeout_s = exchange.limits.generation_timeout_s
    most = job.sampling.max_tokens or 0
    call = exchange.call(
        job.route,
        generation.begin(),
        shape.api,
        timeout_s,
        output_tokens_max=most,
        text_bytes=generation.prompt_bytes,
        resumable=generation,
    )
    head = _head(exchange, job, shape, shape.chunk_object)

    def event(choice: Choice) -> dict[str, Any]:
        chunk = {**head, "choices": [{"index": 0, **choice}]}
        return {**chunk, "usage": None} if job.include_usage else chunk

    async with (
        exchange.cancelled_when_gone(),
        read_within(timeout_s + exchange.limits.write_timeout_s),
        EventStream(exchange) as events,
        services.serving.stream(call) as answer,
        aclosing(generation.text(answer)) as pieces,
    ):
        opening = shape.opening
        with blamed_on(shape.prompt_param):
            async for piece in pieces:
                if opening is not None:
                    await events.send(event(opening))
                    opening = None
                if piece:
                    await events.send(event(shape.piece(piece)))
        await answer.settle()
        exchange.cycle.before_last = answer.handing_over
        last = [event(shape.closing(generation.finish_reason))]
        if job.include_usage:
            last.append({**head, "choices": [], "usage": generation.usage()})
        await events.finish(*last)


def _head(exchange: Exchange, job: Job, shape: AnswerShape, kind: str) -> dict[str, Any]:
    return {
        "id": f"{shape.id_prefix}-{exchange.request_id.hex()}",
        "object": kind,
        "created": exchange.received_unix_ns // 1_000_000_000,
        "model": job.route.deployment,
    }
