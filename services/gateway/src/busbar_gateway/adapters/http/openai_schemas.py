"""Requests of OpenAI's API, strictly: what is not offered is refused, never ignored.

Fields whose only harmless value is the default are declared with that value;
`NEUTRAL_ONLY` names them so that the refusal can say "not supported" instead of
"wrong". Source: https://platform.openai.com/docs/api-reference (November 2026).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from busbar_gateway.adapters.http.errors import BadParameter
from busbar_gateway.adapters.http.kserve_request import parse_json_object

EMBEDDING_INPUTS_MAX = 2048
MESSAGES_MAX = 4096
STOP_MAX = 4
_INT64_MAX = 2**63 - 1
_MEMBERS_MAX = 64


def _bounded_members(value: object) -> object:
    """Refuse objects with absurdly many members before each of them becomes an error of its own."""
    if isinstance(value, dict) and len(cast("dict[str, Any]", value)) > _MEMBERS_MAX:
        raise PydanticCustomError("too_many_members", "Object has too many members")
    return value


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _bound_members(cls, value: object) -> object:
        return _bounded_members(value)


_Zero = Annotated[float, Field(ge=0, le=0)]
_NoItems = Annotated[list[Any], Field(max_length=0)]
_NoMembers = Annotated[dict[str, Any], Field(max_length=0)]
_Metadata = Annotated[dict[str, str], BeforeValidator(_bounded_members), Field(max_length=16)]
_Text = Annotated[str, Field(min_length=1)]
_Stops = Annotated[list[_Text], Field(fail_fast=True, max_length=STOP_MAX)]


class _Request(_Strict):
    NEUTRAL_ONLY: ClassVar[frozenset[str]] = frozenset()

    model: _Text


class StreamOptions(_Strict):
    """What else a stream carries."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class _Generation(_Request):
    """What chat and text completions have in common."""

    max_tokens: Annotated[int, Field(ge=1, le=_INT64_MAX)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: _Text | _Stops | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=_INT64_MAX)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    frequency_penalty: _Zero | None = None
    presence_penalty: _Zero | None = None
    logit_bias: _NoMembers | None = None
    user: str | None = None

    def stops(self) -> list[str]:
        """The caller's stop sequences."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop


class TextPart(_Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True, min_length=1)]
    name: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: _NoItems | None = None
    annotations: _NoItems | None = None

    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class _TextFormat(_Strict):
    type: Literal["text"]


class ChatCompletionRequest(_Generation):
    """POST /v1/chat/completions."""

    NEUTRAL_ONLY: ClassVar[frozenset[str]] = frozenset(
        {
            "audio",
            "frequency_penalty",
            "function_call",
            "functions",
            "logit_bias",
            "logprobs",
            "modalities",
            "n",
            "presence_penalty",
            "reasoning_effort",
            "response_format",
            "service_tier",
            "store",
            "tool_choice",
            "tools",
            "top_logprobs",
            "verbosity",
            "web_search_options",
        }
    )

    messages: Annotated[
        list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=MESSAGES_MAX)
    ]
    max_completion_tokens: Annotated[int, Field(ge=1, le=_INT64_MAX)] | None = None
    audio: None = None
    function_call: Literal["none"] | None = None
    functions: _NoItems | None = None
    logprobs: Literal[False] | None = None
    metadata: _Metadata | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    parallel_tool_calls: bool | None = None
    prediction: None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    reasoning_effort: Literal["none"] | None = None
    response_format: _TextFormat | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    tools: _NoItems | None = None
    top_logprobs: Literal[0] | None = None
    verbosity: Literal["medium"] | None = None
    web_search_options: None = None

    def token_limit(self) -> int | None:
        """The most tokens to generate; None leaves it to the model."""
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise BadParameter(
                "max_tokens and max_completion_tokens differ; give only max_completion_tokens",
                "max_completion_tokens",
                "invalid_value",
            )
        return limits.pop() if limits else None


class CompletionRequest(_Generation):
    """POST /v1/completions."""

    NEUTRAL_ONLY: ClassVar[frozenset[str]] = frozenset(
        {
            "best_of",
            "echo",
            "frequency_penalty",
            "logit_bias",
            "logprobs",
            "n",
            "presence_penalty",
            "suffix",
        }
    )

    prompt: _Text | Annotated[list[_Text], Field(fail_fast=True, min_length=1, max_length=1)]
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: Literal[""] | None = None

    def prompt_text(self) -> str:
        """The one prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]

    def token_limit(self) -> int:
        """The most tokens to generate; OpenAI's default is 16."""
        return 16 if self.max_tokens is None else self.max_tokens


class EmbeddingRequest(_Request):
    """POST /v1/embeddings."""

    input: (
        _Text
        | Annotated[
            list[_Text], Field(fail_fast=True, min_length=1, max_length=EMBEDDING_INPUTS_MAX)
        ]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=_INT64_MAX)] | None = None
    user: str | None = None

    def texts(self) -> list[str]:
        """The texts to embed."""
        return [self.input] if isinstance(self.input, str) else self.input


RequestT = TypeVar("RequestT", bound=_Request)


def parse_request(kind: type[RequestT], body: bytes) -> RequestT:
    """Return the request in `body`; raise InvalidInput naming the first field that is wrong."""
    document = parse_json_object(body)
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise _bad_parameter(kind, document, error) from error


def _bad_parameter(
    kind: type[_Request], document: dict[str, Any], error: ValidationError
) -> BadParameter:
    details = error.errors(include_url=False, include_context=False)
    first = details[0]
    if not first["loc"]:
        return BadParameter(f"Invalid request: {first['msg']}.", None, "invalid_value")
    field = str(first["loc"][0])
    if first["type"] == "missing" and len(first["loc"]) == 1:
        reason, code = f"Missing required parameter: '{field}'.", "missing_required_parameter"
    elif field not in kind.model_fields:
        field = field[:64]
        reason, code = f"Unrecognized request argument supplied: {field}", "unknown_parameter"
    elif field in kind.NEUTRAL_ONLY:
        reason = f"'{field}' is not supported by this service; leave it out."
        code = "unsupported_parameter"
    elif field in {"input", "prompt"} and _is_tokens(document.get(field)):
        reason = f"'{field}' must be text: arrays of tokens are not supported."
        code = "unsupported_value"
    elif field == "prompt" and _is_several(document.get(field)):
        reason = "Several prompts in one request are not supported; send one request for each."
        code = "unsupported_value"
    elif (part := _other_part(field, first["loc"], document)) is not None:
        field, kind_of_part = part
        reason = f"'{field}' is {kind_of_part!r}; this service takes parts of type 'text' only."
        code = "unsupported_value"
    else:
        reasons = dict.fromkeys(
            detail["msg"] for detail in details if detail["loc"][:1] == (field,)
        )
        field = _param(first["loc"])
        reason, code = f"Invalid '{field}': {'; or '.join(reasons)}.", "invalid_value"
    return BadParameter(reason, field, code)


def _other_part(
    field: str, location: tuple[int | str, ...], document: dict[str, Any]
) -> tuple[str, str] | None:
    """Where a message has a part that is no text, such as an image, and what it is."""
    if field != "messages" or len(location) < 2 or not isinstance(location[1], int):  # noqa: PLR2004
        return None
    message = document["messages"][location[1]]
    parts = message.get("content") if isinstance(message, dict) else None
    for index, part in enumerate(cast("list[object]", parts) if isinstance(parts, list) else []):
        kind = cast("dict[str, object]", part).get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind != "text":
            return f"messages[{location[1]}].content[{index}].type", kind[:64]
    return None


def _is_several(value: object) -> bool:
    return isinstance(value, list) and len(cast("list[object]", value)) > 1


def _is_tokens(value: object) -> bool:
    if not isinstance(value, list) or not value:
        return False
    first = value[0]
    return type(first) is int or (isinstance(first, list) and bool(first) and type(first[0]) is int)


def _param(location: tuple[int | str, ...]) -> str:
    """A pydantic location as OpenAI writes it, such as messages[0].role, without union tags."""
    path = str(location[0])
    for step in location[1:]:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step.isidentifier() and step not in {"str", "list", "int", "float", "bool", "dict"}:
            path += f".{step}"
    return path
