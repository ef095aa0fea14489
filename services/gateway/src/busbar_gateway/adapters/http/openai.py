"""OpenAI's API: models, chat and text completions, embeddings."""

from __future__ import annotations

import base64
import re
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from busbar_gateway.adapters.http.errors import BadParameter
from busbar_gateway.adapters.http.exchange import Exchange
from busbar_gateway.adapters.http.generation import (
    Sampling,
    checked_token_limit,
    require_chat,
)
from busbar_gateway.adapters.http.kserve_elements import join_bytes_elements
from busbar_gateway.adapters.http.openai_generation import (
    AnswerShape,
    Job,
    answer_stream,
    answer_whole,
    wants_usage,
)
from busbar_gateway.adapters.http.openai_schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    parse_request,
)
from busbar_gateway.adapters.http.prompts import render_prompt
from busbar_gateway.adapters.http.router import Address
from busbar_gateway.adapters.http.services import Services
from busbar_gateway.adapters.model_response import read_response
from busbar_gateway.domain.failures import InvalidInput, ModelFailed, ModelUnready
from busbar_gateway.domain.routes import Route
from busbar_gateway.usecases.calls import InferenceCall

_TEXT_INDEX = re.compile(r"\btext\[(\d{1,9})\]")

CHAT = AnswerShape(
    api="openai.chat",
    prompt_param="messages",
    id_prefix="chatcmpl",
    whole_object="chat.completion",
    chunk_object="chat.completion.chunk",
    whole=lambda text, reason: {
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None,
        "finish_reason": reason,
    },
    piece=lambda text: {"delta": {"content": text}, "logprobs": None, "finish_reason": None},
    opening={
        "delta": {"role": "assistant", "content": "", "refusal": None},
        "logprobs": None,
        "finish_reason": None,
    },
    closing=lambda reason: {"delta": {}, "logprobs": None, "finish_reason": reason},
)
COMPLETION = AnswerShape(
    api="openai.completions",
    prompt_param="prompt",
    id_prefix="cmpl",
    whole_object="text_completion",
    chunk_object="text_completion",
    whole=lambda text, reason: {"text": text, "logprobs": None, "finish_reason": reason},
    piece=lambda text: {"text": text, "logprobs": None, "finish_reason": None},
    opening=None,
    closing=lambda reason: {"text": "", "logprobs": None, "finish_reason": reason},
)


class OpenAI:
    """The endpoints under /v1."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._limits = services.limits

    def addresses(self) -> list[Address]:
        """The routes."""
        return [
            Address("/v1/chat/completions", self.chat, "POST"),
            Address("/v1/completions", self.completions, "POST"),
            Address("/v1/embeddings", self.embeddings, "POST"),
            Address("/v1/models", self.models, "GET"),
            Address("/v1/models/{model}", self.model, "GET"),
        ]

    async def models(self, exchange: Exchange) -> None:
        """List what the caller may use."""
        routes = sorted(
            self._services.routes.visible(exchange.caller), key=lambda route: route.deployment
        )
        data = [_model(route) for route in routes]
        await exchange.respond_json({"object": "list", "data": data})

    async def model(self, exchange: Exchange) -> None:
        """One of them."""
        name = exchange.path_params["model"]
        await exchange.respond_json(_model(self._services.routes.find(exchange.caller, name)))

    async def chat(self, exchange: Exchange) -> None:
        """Answer a conversation."""
        request = parse_request(ChatCompletionRequest, await exchange.body())
        include_usage = wants_usage(request.stream, request.stream_options)
        route = self._services.routes.find(exchange.caller, request.model)
        require_chat(route)
        manifest = route.manifest
        prompt = render_prompt(
            manifest.chat_template,
            [_message(message.role, message.text(), message.name) for message in request.messages],
            limit_bytes=self._limits.max_body_bytes,
        )
        param = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
        sampling = Sampling(
            max_tokens=checked_token_limit(route, request.token_limit(), param),
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stop=[*request.stops(), *manifest.stop],
        )
        job = Job(route, prompt, sampling, include_usage)
        respond = answer_stream if request.stream else answer_whole
        await respond(self._services, exchange, job, CHAT)

    async def completions(self, exchange: Exchange) -> None:
        """Continue a text."""
        request = parse_request(CompletionRequest, await exchange.body())
        include_usage = wants_usage(request.stream, request.stream_options)
        route = self._services.routes.find(exchange.caller, request.model)
        require_chat(route)
        sampling = Sampling(
            max_tokens=checked_token_limit(route, request.token_limit(), "max_tokens"),
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stop=request.stops(),
        )
        job = Job(route, request.prompt_text(), sampling, include_usage)
        respond = answer_stream if request.stream else answer_whole
        await respond(self._services, exchange, job, COMPLETION)

    async def embeddings(self, exchange: Exchange) -> None:
        """Turn texts into vectors."""
        request = parse_request(EmbeddingRequest, await exchange.body())
        route = self._services.routes.find(exchange.caller, request.model)
        _require_embeddings(route, request.dimensions)
        raw = join_bytes_elements([text.encode() for text in request.texts()])
        call = exchange.call(
            route,
            _embedding_payload(route, len(request.texts()), raw),
            "openai.embeddings",
            self._limits.request_timeout_s,
            text_bytes=len(raw),
        )
        try:
            await self._embed(exchange, request, call)
        except InvalidInput as error:
            raise _said_of_inputs(error) from error

    async def _embed(
        self, exchange: Exchange, request: EmbeddingRequest, call: InferenceCall
    ) -> None:
        read = _Vectors(len(request.texts()))
        call.read = read
        async with exchange.cancelled_when_gone(), self._services.serving.infer(call) as answer:
            exchange.cycle.before_last = answer.handing_over
            vectors = read(answer.payload)
            _require_dimensions(request.dimensions, vectors.shape[1])
            usage = {"prompt_tokens": answer.input_tokens, "total_tokens": answer.input_tokens}
            await exchange.respond_json(
                {
                    "object": "list",
                    "data": _embedding_objects(vectors, request.encoding_format),
                    "model": call.route.deployment,
                    "usage": usage,
                }
            )


class _Vectors:
    """Reads an answer once, however often it is asked."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._read: tuple[bytes, np.ndarray[Any, np.dtype[np.float32]]] | None = None

    def __call__(self, payload: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
        if self._read is None or self._read[0] is not payload:
            self._read = payload, _vectors(payload, self._count)
        return self._read[1]


def _said_of_inputs(error: InvalidInput) -> InvalidInput:
    """What the model refuses, which knows its tensors, in the words of /v1/embeddings."""
    if error.param:
        return error
    named = _TEXT_INDEX.search(error.reason)
    index = f"[{named[1]}]" if named else ""
    reason = _TEXT_INDEX.sub(r"input[\1]", error.reason)
    reason = reason.replace(", or set truncate to true", "").replace("it, split", "it or split")
    return InvalidInput(reason, f"input{index}")


def _model(route: Route) -> dict[str, Any]:
    return {
        "id": route.deployment,
        "object": "model",
        "created": route.created_unix_s,
        "owned_by": "busbar",
    }


def _message(role: str, content: str, name: str | None) -> dict[str, str]:
    """A message for the template; OpenAI's developer role took the place of system."""
    message = {"role": "system" if role == "developer" else role, "content": content}
    return message if name is None else {**message, "name": name}


def _require_embeddings(route: Route, dimensions: int | None) -> None:
    if route.manifest.task != "embed":
        raise BadParameter(
            f"The model '{route.deployment}' does not make embeddings.",
            "model",
            "unsupported_value",
        )
    if route.signature is None:
        raise ModelUnready(route.unready)
    spec = route.signature.outputs.get("embedding")
    if spec is not None and spec.shape and spec.shape[-1] > 0:
        _require_dimensions(dimensions, spec.shape[-1])


def _require_dimensions(wanted: int | None, native: int) -> None:
    if wanted is not None and wanted != native:
        raise BadParameter(
            f"'dimensions' is {wanted}; this model's embeddings always have {native}.",
            "dimensions",
            "unsupported_value",
        )


def _embedding_payload(route: Route, count: int, raw: bytes) -> bytes:
    message = service_pb2.ModelInferRequest(model_name=route.deployment)
    message.inputs.add(name="text", datatype="BYTES", shape=[count])
    message.raw_input_contents.append(raw)
    return message.SerializeToString()


def _vectors(payload: bytes, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The `embedding` output, one row per text."""
    response = read_response(payload)
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=False):
        if output.name != "embedding":
            continue
        values = np.frombuffer(raw, np.float32)
        if output.datatype != "FP32" or not values.size or values.size % count:
            break
        if not np.isfinite(values).all():
            break
        return values.reshape(count, -1)
    raise ModelFailed("the model did not answer with one finite vector for each text")


def _embedding_objects(
    vectors: np.ndarray[Any, np.dtype[np.float32]], encoding: str | None
) -> list[dict[str, Any]]:
    """OpenAI's embedding objects, as numbers unless asked for base64: of little-endian float32."""
    return [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(row.tobytes()).decode() if encoding == "base64" else row,
        }
        for index, row in enumerate(vectors)
    ]
