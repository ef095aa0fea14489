"""Text generation through the vLLM backend's tensors, for chat and text completions.

Tensors: https://github.com/triton-inference-server/vllm_backend (text_input,
stream, sampling_parameters, exclude_input_in_output, return_* in; text_output,
finish_reason, num_*_tokens out, over a decoupled model).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from tritonclient.grpc import service_pb2

from busbar_gateway.adapters.http.errors import BadParameter
from busbar_gateway.adapters.http.kserve_elements import (
    join_bytes_elements,
    split_bytes_elements,
)
from busbar_gateway.adapters.model_response import read_response
from busbar_gateway.domain.continuation import Continuation
from busbar_gateway.domain.failures import ModelFailed, ModelUnready
from busbar_gateway.domain.routes import Route
from busbar_gateway.usecases.calls import AnswerStream

_OPTIONS = (
    "exclude_input_in_output",
    "return_finish_reason",
    "return_num_input_tokens",
    "return_num_output_tokens",
)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens; None leaves it to the model."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: list[str] = field(default_factory=list)

    def as_json(self) -> bytes:
        """The `sampling_parameters` tensor's element."""
        given = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "stop": self.stop or None,
        }
        return orjson.dumps({key: value for key, value in given.items() if value is not None})


class Generation:
    """One generation: what is asked of the model, and what has come of it so far."""

    def __init__(self, route: Route, prompt: str, sampling: Sampling, *, stream: bool) -> None:
        self._route = route
        self._prompt = prompt
        self._sampling = sampling
        self._stream = stream
        self._so_far = Continuation(sampling.max_tokens or 0, tuple(sampling.stop))

    @property
    def input_tokens(self) -> int:
        """As in Resumable."""
        return self._so_far.input_tokens

    @property
    def output_tokens(self) -> int:
        """As in Resumable."""
        return self._so_far.output_tokens

    @property
    def complete(self) -> bool:
        """As in Resumable."""
        return self._so_far.complete

    @property
    def falls_short(self) -> bool:
        """As in Resumable."""
        return self._so_far.falls_short

    @property
    def cached_tokens(self) -> int:
        """As in Resumable."""
        return self._so_far.cached_tokens

    def count(
        self, input_tokens: int, output_tokens: int, cached_tokens: int = 0
    ) -> tuple[int, int]:
        """As in Resumable."""
        return self._so_far.count(input_tokens, output_tokens, cached_tokens)

    @property
    def prompt_bytes(self) -> int:
        """Size of the text that the model reads."""
        return len(self._prompt.encode())

    def begin(self) -> bytes:
        """The serialized ModelInferRequest for the prompt."""
        return _payload(self._route, self._prompt, self._sampling, stream=self._stream)

    def go_on(self) -> bytes:
        """As in Resumable."""
        text, tokens_max = self._so_far.resume()
        seed = self._sampling.seed
        sampling = replace(
            self._sampling,
            max_tokens=tokens_max or None,
            seed=None if seed is None else self._so_far.seed_from(seed),
        )
        return _payload(self._route, self._prompt + text, sampling, stream=self._stream)

    async def text(self, answer: AnswerStream) -> AsyncGenerator[str]:
        """Yield pieces of text as they come, never half a character."""
        async for chunk in answer:
            outputs = _outputs(chunk.payload)
            reason = _first(outputs, "finish_reason").decode("utf-8", "replace")
            yield self._so_far.take(_first(outputs, "text_output"), reason)
        yield self._so_far.end()

    @property
    def finish_reason(self) -> str | None:
        """Why it ended; None while it goes on."""
        return self._so_far.finish_reason

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object; it tells cached tokens only where the model counts them."""
        usage: dict[str, Any] = {
            "prompt_tokens": self.input_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.input_tokens + self.output_tokens,
        }
        if self._route.manifest.cached_tokens_output:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        return usage


def require_chat(route: Route) -> None:
    """Raise unless the deployment generates text."""
    if route.manifest.task != "chat":
        raise BadParameter(
            f"The model '{route.deployment}' does not generate text.", "model", "unsupported_value"
        )
    if route.signature is None:
        raise ModelUnready(route.unready)


def checked_token_limit(route: Route, wanted: int | None, param: str) -> int | None:
    """Return how many tokens to generate at most; raise when the model never makes so many."""
    most = route.manifest.max_output_tokens
    if wanted is None:
        return most or None
    if most and wanted > most:
        raise BadParameter(
            f"'{param}' is {wanted}; this model generates at most {most} tokens.",
            param,
            "invalid_value",
        )
    return wanted


def _payload(route: Route, prompt: str, sampling: Sampling, *, stream: bool) -> bytes:
    message = service_pb2.ModelInferRequest(model_name=route.deployment)
    _add(message, "text_input", "BYTES", join_bytes_elements([prompt.encode()]))
    _add(message, "stream", "BOOL", bytes([stream]))
    _add(message, "sampling_parameters", "BYTES", join_bytes_elements([sampling.as_json()]))
    for option in (*_OPTIONS, *_cached_option(route)):
        _add(message, option, "BOOL", b"\x01")
    return message.SerializeToString()


def _cached_option(route: Route) -> Iterator[str]:
    """Cached tokens are not in the vLLM backend's contract: asked for where the model has them."""
    option = f"return_{route.manifest.cached_tokens_output}"
    if route.signature is not None and option in route.signature.inputs:
        yield option


def _add(message: Any, name: str, datatype: str, raw: bytes) -> None:
    message.inputs.add(name=name, datatype=datatype, shape=[1])
    message.raw_input_contents.append(raw)


def _outputs(payload: bytes) -> dict[str, bytes]:
    response = read_response(payload)
    if len(response.outputs) != len(response.raw_output_contents):
        raise ModelFailed("the model's answer has no raw contents for some of its outputs")
    names = (output.name for output in response.outputs)
    return dict(zip(names, response.raw_output_contents, strict=True))


def _first(outputs: dict[str, bytes], name: str) -> bytes:
    """The first element of a BYTES output, b"" when it is not there."""
    raw = outputs.get(name, b"")
    try:
        elements = split_bytes_elements(raw)
    except ValueError as error:
        raise ModelFailed(f"the model's output '{name}' is broken: {error}") from error
    return elements[0] if elements else b""
