"""The OpenAPI document of the HTTP edge."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from importlib.metadata import version as package_version
from typing import Any

from pydantic.json_schema import models_json_schema

from busbar_gateway.adapters.http.errors import Family
from busbar_gateway.adapters.http.kserve import CONTROLS
from busbar_gateway.adapters.http.limits import HttpLimits
from busbar_gateway.adapters.http.openai_schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
)
from busbar_gateway.domain.idempotency import KEY_CHARS_MAX

Json = dict[str, Any]

_REASONS = {
    400: "The request is wrong; the message says what to change.",
    401: "No API key, or none that is valid.",
    403: "Nobody may do this here.",
    404: "There is no such model or address, or not for this key.",
    405: "The address does not take this method.",
    408: "The request did not arrive in time.",
    409: "The Idempotency-Key was used for another request, or its answer was not kept.",
    413: "The request is too large.",
    422: "The answer does not fit a message; ask for less.",
    429: "Too much is waiting already, or kept under Idempotency-Keys; see Retry-After.",
    431: "The request's head is too large.",
    500: "The model or the service failed; nothing was charged.",
    503: "It cannot be done now; see Retry-After.",
    504: "The answer did not come before the deadline; nothing was charged.",
}
_PUBLIC = (400, 405, 408, 431, 503)
_READ = (400, 401, 404, 405, 408, 431, 500, 503)
_SERVE = (400, 401, 404, 405, 408, 409, 413, 422, 429, 431, 500, 503, 504)
_REFUSE = (400, 401, 403, 405, 408, 431)
_STRING: Json = {"type": "string"}
_IDEMPOTENCY_KEY: Json = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": (
        "A request sent again under the same key within 24 hours gets the same answer and is"
        " charged once. Such a request runs to its end even when the client leaves."
    ),
    "schema": {"type": "string", "pattern": f"^[!-~]{{1,{KEY_CHARS_MAX}}}$"},
}
_INTEGER: Json = {"type": "integer"}
_PARAMETERS: Json = {
    "type": "object",
    "additionalProperties": {
        "anyOf": [_STRING, {"type": "number"}, {"type": "boolean"}],
    },
}


def openapi_document(limits: HttpLimits) -> Json:
    """Return the OpenAPI 3.1 document of everything the HTTP edge answers."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Busbar",
            "version": package_version("busbar-gateway"),
            "description": (
                "Inference by the request: OpenAI's API under /v1, KServe v2 (Open Inference"
                f" Protocol) under /v2. Bodies of at most {limits.max_body_bytes} bytes."
            ),
        },
        "security": [{"key": []}],
        "paths": {**_openai_paths(), **_kserve_paths(), **_own_paths()},
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(),
        },
    }


def _openai_paths() -> Json:
    events = {"text/event-stream": {"schema": _STRING}}
    return {
        "/v1/models": {"get": _operation("List models", "openai", _READ, answer=_ref("ModelList"))},
        "/v1/models/{model}": {
            "parameters": [_path("model")],
            "get": _operation("Show a model", "openai", _READ, answer=_ref("Model")),
        },
        "/v1/chat/completions": {
            "post": _operation(
                "Answer a conversation",
                "openai",
                _SERVE,
                body=_json(_ref("ChatCompletionRequest")),
                answer=_ref("ChatCompletion"),
                other_answers=events,
            )
        },
        "/v1/completions": {
            "post": _operation(
                "Continue a text",
                "openai",
                _SERVE,
                body=_json(_ref("CompletionRequest")),
                answer=_ref("Completion"),
                other_answers=events,
            )
        },
        "/v1/embeddings": {
            "post": _operation(
                "Turn texts into vectors",
                "openai",
                _SERVE,
                body=_json(_ref("EmbeddingRequest")),
                answer=_ref("EmbeddingList"),
            )
        },
    }


def _kserve_paths() -> Json:
    paths: Json = {
        "/v2/health/live": {"get": _health("The process answers")},
        "/v2/health/ready": {"get": _health("The gateway can serve")},
        "/v2": {
            "get": _operation("Describe the server", "kserve", _READ, answer=_ref("ServerMetadata"))
        },
    }
    for base in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        parameters = [_path(name) for name in ("model", "version") if f"{{{name}}}" in base]
        for suffix, operation in _model_operations().items():
            method, described = operation
            paths[base + suffix] = {"parameters": parameters, method: described}
    for _, path, methods in CONTROLS:
        names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        paths[path] = {
            "parameters": [_path(name) for name in names],
            **{
                method.lower(): _operation("Refused: tenants share the server", "kserve", _REFUSE)
                for method in methods
            },
        }
    return paths


def _model_operations() -> dict[str, tuple[str, Json]]:
    ready = _operation("Whether a replica takes work", "kserve", _READ)
    ready["responses"]["200"] = {"description": "It does."}
    infer = _operation(
        "Run one inference",
        "kserve",
        _SERVE,
        body={
            "application/json": {"schema": _ref("InferRequest")},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
        answer=_ref("InferResponse"),
        other_answers={
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
        },
    )
    infer["parameters"] = [
        {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "description": "Length of the JSON part when binary tensors follow it.",
            "schema": {"type": "integer", "minimum": 1},
        }
    ]
    config = {"type": "object"}
    return {
        "": ("get", _operation("Describe a model", "kserve", _READ, answer=_ref("ModelMetadata"))),
        "/ready": ("get", ready),
        "/config": ("get", _operation("Triton's configuration", "kserve", _READ, answer=config)),
        "/infer": ("post", infer),
    }


def _own_paths() -> Json:
    operation = _operation("This document", "openai", _PUBLIC, answer={"type": "object"})
    operation["security"] = []
    return {"/openapi.json": {"get": operation}}


def _health(summary: str) -> Json:
    operation = _operation(summary, "kserve", _PUBLIC)
    operation["security"] = []
    operation["responses"]["200"] = {"description": "It is so."}
    return operation


def _operation(
    summary: str,
    family: Family,
    failures: Iterable[int],
    *,
    body: Json | None = None,
    answer: Json | None = None,
    other_answers: Json | None = None,
) -> Json:
    error = _json(_ref("OpenAIError" if family == "openai" else "KServeError"))
    # What is refused before there is a request has OpenAI's shape everywhere.
    headless = _json({"anyOf": [_ref("OpenAIError"), _ref("KServeError")]})
    responses: Json = {
        str(status): {
            "description": _REASONS[status],
            "content": headless if status in {400, 408, 431, 503} else error,
        }
        for status in failures
    }
    if answer is not None:
        content = {**_json(answer), **(other_answers or {})}
        responses["200"] = {"description": "The answer.", "content": content}
    operation: Json = {"summary": summary, "tags": [family], "responses": responses}
    if str(HTTPStatus.CONFLICT.value) in responses:
        operation["parameters"] = [_IDEMPOTENCY_KEY]
    if body is not None:
        operation["requestBody"] = {"required": True, "content": body}
    return operation


def _schemas() -> Json:
    requests = (ChatCompletionRequest, CompletionRequest, EmbeddingRequest)
    _, definitions = models_json_schema(
        [(kind, "validation") for kind in requests], ref_template="#/components/schemas/{model}"
    )
    return {**definitions["$defs"], **_OPENAI_ANSWERS, **_KSERVE_SCHEMAS}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _path(name: str) -> Json:
    schema = {"type": "string", "minLength": 1, "pattern": "^[^/]+$"}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _object(required: Json, optional: Json | None = None) -> Json:
    properties = {**required, **(optional or {})}
    return {"type": "object", "required": list(required), "properties": properties}


def _array(items: Json) -> Json:
    return {"type": "array", "items": items}


def _nullable(kind: str) -> Json:
    return {"type": [kind, "null"]}


_USAGE = _object(
    {"prompt_tokens": _INTEGER, "total_tokens": _INTEGER},
    {
        "completion_tokens": _INTEGER,
        "prompt_tokens_details": _object({"cached_tokens": _INTEGER}),
    },
)
_ANSWER_HEAD: Json = {
    "id": _STRING,
    "object": _STRING,
    "created": _INTEGER,
    "model": _STRING,
    "usage": _USAGE,
}
_CHOICE: Json = {"index": _INTEGER, "finish_reason": _nullable("string")}
_OPENAI_ANSWERS: Json = {
    "OpenAIError": _object(
        {
            "error": _object(
                {
                    "message": _STRING,
                    "type": _STRING,
                    "param": _nullable("string"),
                    "code": _nullable("string"),
                }
            )
        }
    ),
    "Model": _object(
        {"id": _STRING, "object": {"const": "model"}, "created": _INTEGER, "owned_by": _STRING}
    ),
    "ModelList": _object({"object": {"const": "list"}, "data": _array(_ref("Model"))}),
    "ChatCompletion": _object(
        {
            **_ANSWER_HEAD,
            "choices": _array(
                _object(
                    {**_CHOICE, "message": _object({"role": _STRING, "content": _STRING})},
                )
            ),
        }
    ),
    "Completion": _object(
        {**_ANSWER_HEAD, "choices": _array(_object({**_CHOICE, "text": _STRING}))}
    ),
    "EmbeddingList": _object(
        {
            "object": {"const": "list"},
            "model": _STRING,
            "usage": _USAGE,
            "data": _array(
                _object(
                    {
                        "object": {"const": "embedding"},
                        "index": _INTEGER,
                        "embedding": {"anyOf": [_array({"type": "number"}), _STRING]},
                    }
                )
            ),
        }
    ),
}
_TENSOR_HEAD: Json = {
    "name": _STRING,
    "shape": _array({"type": "integer", "minimum": 0}),
    "datatype": _STRING,
}
_TENSOR_METADATA = _object({**_TENSOR_HEAD, "shape": _array(_INTEGER)})
_KSERVE_SCHEMAS: Json = {
    "KServeError": _object({"error": _STRING}),
    "ServerMetadata": _object({"name": _STRING, "version": _STRING, "extensions": _array(_STRING)}),
    "ModelMetadata": _object(
        {
            "name": _STRING,
            "versions": _array(_STRING),
            "platform": _STRING,
            "inputs": _array(_TENSOR_METADATA),
            "outputs": _array(_TENSOR_METADATA),
        }
    ),
    "InferRequest": _object(
        {
            "inputs": {
                **_array(
                    _object(_TENSOR_HEAD, {"data": {"type": "array"}, "parameters": _PARAMETERS})
                ),
                "minItems": 1,
            }
        },
        {
            "id": _STRING,
            "parameters": _PARAMETERS,
            "outputs": _array(_object({"name": _STRING}, {"parameters": _PARAMETERS})),
        },
    ),
    "InferResponse": _object(
        {
            "model_name": _STRING,
            "model_version": _STRING,
            "outputs": _array(_object(_TENSOR_HEAD, {"data": {"type": "array"}})),
        },
        {"id": _STRING, "parameters": _PARAMETERS},
    ),
}
