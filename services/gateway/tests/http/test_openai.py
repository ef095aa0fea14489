"""OpenAI's API through OpenAI's SDK, and what it refuses."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import openai
import pytest
from busbar_gateway.domain.failures import (
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    RateLimited,
    Unavailable,
)

DEVELOPER: Any = {"role": "developer", "content": "be kind"}
USER: list[Any] = [{"role": "user", "content": "tell me more"}]


@pytest.fixture
def client(edge: Any, key: str) -> openai.OpenAI:
    plain = openai.DefaultHttpxClient(verify=False)
    base_url = f"{edge.url}/v1"
    return openai.OpenAI(
        base_url=base_url, api_key=key, max_retries=0, timeout=10, http_client=plain
    )


def test_models_are_those_the_key_may_use(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]

    assert "chatty" in names
    assert "secret" not in names
    assert client.models.retrieve("chatty").owned_by == "busbar"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("secret")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")


def test_a_chat_is_answered_with_the_models_own_counts(client: openai.OpenAI, edge: Any) -> None:
    answer = client.chat.completions.create(model="chatty", messages=[DEVELOPER, *USER])

    assert answer.choices[0].message.content == " system: be kind user: tell me more assistant:"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 5
    assert answer.usage.completion_tokens == 9
    assert answer.usage.total_tokens == 14
    assert (
        answer._request_id  # pyright: ignore[reportPrivateUsage]  the SDK documents it
        == f"req_{answer.id.removeprefix('chatcmpl-')}"
    )
    assert edge.serving.calls[-1].api == "openai.chat"
    assert edge.serving.calls[-1].whole
    assert edge.serving.ended[answer.id.removeprefix("chatcmpl-")] == "charged 9"


def test_sampling_parameters_reach_the_model(client: openai.OpenAI, edge: Any) -> None:
    client.chat.completions.create(
        model="chatty",
        messages=USER,
        max_completion_tokens=3,
        temperature=0.5,
        top_p=0.25,
        seed=42,
        stop=["x", "y"],
        user="somebody",
        metadata={"purpose": "test"},
        store=False,
        service_tier="auto",
        n=1,
        frequency_penalty=0,
        presence_penalty=0.0,
        response_format={"type": "text"},
    )

    assert edge.serving.last_parameters() == {
        "max_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.25,
        "seed": 42,
        "stop": ["x", "y", "\nuser:"],
    }


def test_a_limit_on_tokens_ends_the_answer_with_length(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="chatty", prompt="one two three", max_tokens=2)

    assert answer.choices[0].text == " one two"
    assert answer.choices[0].finish_reason == "length"


def test_a_streamed_chat_comes_in_pieces_and_ends_with_usage(
    client: openai.OpenAI, edge: Any
) -> None:
    stream = client.chat.completions.create(
        model="chatty", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)

    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == " user: tell me more assistant:"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6
    assert stream.response.headers["x-request-id"].startswith("req_")
    assert edge.serving.ended[chunks[0].id.removeprefix("chatcmpl-")] == "charged 6"


def test_a_streamed_completion_ends_with_done(edge: Any, key: str) -> None:
    body = json.dumps({"model": "chatty", "prompt": "a b", "stream": True}).encode()
    status, headers, answer = edge.request("POST", "/v1/completions", body)
    events = answer.decode().split("\n\n")

    assert status == 200
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["x-request-id"].startswith("req_")
    assert "openai-processing-ms" in headers
    assert events[-2:] == ["data: [DONE]", ""]
    pieces = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert [piece["choices"][0]["text"] for piece in pieces] == [" a", " b", ""]
    assert pieces[-1]["choices"][0]["finish_reason"] == "stop"
    assert all("usage" not in piece for piece in pieces)


def test_characters_are_never_cut(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="chatty", prompt="!utf8", stream=True)
    pieces = [chunk.choices[0].text for chunk in stream]

    assert "".join(pieces) == "grüße €😀"
    assert "�" not in "".join(pieces)


def test_silence_on_a_stream_is_filled_with_comments(edge: Any) -> None:
    body = json.dumps({"model": "chatty", "prompt": "!late", "stream": True}).encode()
    _, _, answer = edge.request("POST", "/v1/completions", body)

    assert answer.startswith(b": keep-alive\n\n")
    assert answer.endswith(b"data: [DONE]\n\n")


def test_the_sdk_reads_past_comments(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="chatty", prompt="!late word", stream=True)

    assert "".join(chunk.choices[0].text for chunk in stream) == " !late word"


def test_a_failure_before_the_first_byte_has_its_own_status(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        client.completions.create(model="chatty", prompt="!fail", stream=True)

    assert failed.value.code == "model_failed"
    assert failed.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("prompt", ["!break", "!late !fail"])
def test_a_failure_after_the_first_byte_is_an_error_event(
    client: openai.OpenAI, prompt: str
) -> None:
    stream = client.completions.create(model="chatty", prompt=prompt, stream=True)

    with pytest.raises(openai.APIError, match="the model gave up"):
        list(stream)


def test_a_charge_that_fails_ends_the_stream_in_an_error(client: openai.OpenAI, edge: Any) -> None:
    edge.serving.settle_failure = Unavailable("the charge could not be made durable")
    stream = client.completions.create(model="chatty", prompt="a b", stream=True)

    with pytest.raises(openai.APIError, match="made durable"):
        list(stream)


def test_leaving_a_stream_cancels_it_and_charges_what_was_delivered(
    client: openai.OpenAI, edge: Any, until: Callable[..., None]
) -> None:
    stream = client.completions.create(model="chatty", prompt="!endless", stream=True)
    first = next(iter(stream))
    stream.close()
    name = first.id.removeprefix("cmpl-")

    until(lambda: edge.serving.ended[name] != "working", timeout_s=1)
    assert edge.serving.ended[name].startswith("charged")


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_before_anything_came_cancels_and_charges_nothing(
    edge: Any, until: Callable[..., None], key: str, stream: bool
) -> None:
    body = json.dumps({"model": "chatty", "prompt": "!hang", "stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    before = len(edge.serving.calls)
    with edge.connect() as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: len(edge.serving.calls) > before)
    name = edge.serving.calls[-1].request_id.hex()

    until(lambda: edge.serving.ended[name] != "working", timeout_s=1)
    assert edge.serving.ended[name] == "not charged"


def test_a_client_that_stops_reading_is_given_up(
    edge: Any, until: Callable[..., None], key: str
) -> None:
    body = json.dumps({"model": "chatty", "prompt": "!flood", "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    before = len(edge.serving.calls)
    with edge.connect() as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: len(edge.serving.calls) > before)
        name = edge.serving.calls[-1].request_id.hex()

        until(lambda: edge.serving.ended[name] != "working")
        assert edge.serving.ended[name].startswith("charged")


@pytest.mark.parametrize(
    "options",
    [
        {"encoding_format": "float"},
        {"encoding_format": "base64"},
        {"extra_body": {"encoding_format": None}},
        {},
    ],
    ids=["float", "base64", "null", "the SDK's own"],
)
def test_embeddings_come_as_floats_or_base64(
    client: openai.OpenAI, options: dict[str, Any]
) -> None:
    answer = client.embeddings.create(model="embedder", input=["a", "four"], **options)
    vectors = [
        np.frombuffer(base64.b64decode(item.embedding), "<f4")
        if isinstance(item.embedding, str)
        else item.embedding
        for item in answer.data
    ]

    assert [list(vector) for vector in vectors] == [[1, 1, 0.5, -1], [4, 1, 0.5, -1]]
    assert [item.index for item in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens == 7
    assert answer.model == "embedder"


def test_dimensions_are_refused_unless_native(client: openai.OpenAI) -> None:
    assert client.embeddings.create(model="embedder", input="a", dimensions=4).data
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="embedder", input="a", dimensions=3)
    assert refused.value.param == "dimensions"


def test_an_embedding_error_of_the_model_is_said_in_the_words_of_the_request(
    client: openai.OpenAI, edge: Any
) -> None:
    edge.serving.failure = InvalidInput(
        "text[2] has 300 tokens, the model takes 256: shorten it, split it, or set truncate to true"
    )
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="embedder", input=["a", "b", "c"])

    said = str(refused.value)
    assert refused.value.param == "input[2]"
    assert "input[2] has 300 tokens, the model takes 256: shorten it or split it" in said
    assert "truncate" not in said


BAD_CHATS: list[tuple[str, dict[str, Any], str | None]] = [
    ("no messages", {"messages": []}, "messages"),
    ("messages of the wrong type", {"messages": "hi"}, "messages"),
    ("unknown role", {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ("no content", {"messages": [{"role": "user"}]}, "messages[0].content"),
    (
        "an image",
        {
            "messages": [
                *USER,
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "what is it?"}, {"type": "image_url"}],
                },
            ]
        },
        "messages[1].content[1].type",
    ),
    ("refused by the template", {"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
    ("several choices", {"n": 2}, "n"),
    ("logprobs", {"logprobs": True}, "logprobs"),
    ("top_logprobs", {"top_logprobs": 3}, "top_logprobs"),
    ("tools", {"tools": [{"type": "function"}]}, "tools"),
    ("functions", {"functions": [{}]}, "functions"),
    ("forced tool", {"tool_choice": "required"}, "tool_choice"),
    ("JSON mode", {"response_format": {"type": "json_object"}}, "response_format"),
    ("logit bias", {"logit_bias": {"50256": -100}}, "logit_bias"),
    ("frequency penalty", {"frequency_penalty": 0.1}, "frequency_penalty"),
    ("presence penalty", {"presence_penalty": -1}, "presence_penalty"),
    ("storing", {"store": True}, "store"),
    ("audio", {"modalities": ["audio"]}, "modalities"),
    ("negative max_tokens", {"max_tokens": -1}, "max_tokens"),
    ("zero max_tokens", {"max_completion_tokens": 0}, "max_completion_tokens"),
    ("max_tokens beyond the model", {"max_tokens": 1001}, "max_tokens"),
    ("two limits", {"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
    ("fractional max_tokens", {"max_tokens": 1.5}, "max_tokens"),
    ("temperature too high", {"temperature": 2.1}, "temperature"),
    ("temperature as text", {"temperature": "hot"}, "temperature"),
    ("top_p of zero", {"top_p": 0}, "top_p"),
    ("five stops", {"stop": list("abcde")}, "stop"),
    ("an empty stop", {"stop": ""}, "stop"),
    ("a seed beyond 64 bits", {"seed": 2**63}, "seed"),
    ("stream as text", {"stream": "yes"}, "stream"),
    ("stream options without a stream", {"stream_options": {}}, "stream_options"),
    ("unknown argument", {"best_friend": 1}, "best_friend"),
    ("a number as model", {"model": 1}, "model"),
    ("a model that embeds", {"model": "embedder"}, "model"),
]


@pytest.mark.parametrize(
    ("change", "param"), [case[1:] for case in BAD_CHATS], ids=[c[0] for c in BAD_CHATS]
)
def test_a_chat_that_cannot_be_honoured_is_refused(
    edge: Any, change: dict[str, Any], param: str | None
) -> None:
    before = len(edge.serving.calls)
    request = {"model": "chatty", "messages": USER, **change}
    status, headers, answer = edge.post_json("/v1/chat/completions", request)

    assert status == 400
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert param is None or answer["error"]["param"] == param
    assert headers["x-request-id"].startswith("req_")
    assert len(edge.serving.calls) == before


BAD_COMPLETIONS = [
    ("no prompt", {"prompt": None}, "prompt"),
    ("an empty prompt", {"prompt": ""}, "prompt"),
    ("token array", {"prompt": [1, 2, 3]}, "prompt"),
    ("arrays of tokens", {"prompt": [[1, 2], [3]]}, "prompt"),
    ("several prompts", {"prompt": ["a", "b"]}, "prompt"),
    ("echo", {"echo": True}, "echo"),
    ("suffix", {"suffix": "x"}, "suffix"),
    ("best_of", {"best_of": 3}, "best_of"),
    ("logprobs", {"logprobs": 0}, "logprobs"),
]


@pytest.mark.parametrize(
    ("change", "param"), [c[1:] for c in BAD_COMPLETIONS], ids=[c[0] for c in BAD_COMPLETIONS]
)
def test_a_completion_that_cannot_be_honoured_is_refused(
    edge: Any, change: dict[str, Any], param: str
) -> None:
    request = {"model": "chatty", "prompt": "x", **change}
    status, _, answer = edge.post_json("/v1/completions", request)

    assert (status, answer["error"]["param"]) == (400, param)


BAD_EMBEDDINGS = [
    ("nothing", {"input": []}, "input"),
    ("an empty text", {"input": ""}, "input"),
    ("an empty text among others", {"input": ["a", ""]}, "input"),
    ("tokens", {"input": [1, 2]}, "input"),
    ("arrays of tokens", {"input": [[1], [2]]}, "input"),
    ("too many", {"input": ["a"] * 2049}, "input"),
    ("a number", {"input": 5}, "input"),
    ("unknown encoding", {"encoding_format": "hex"}, "encoding_format"),
    ("a model that chats", {"model": "chatty"}, "model"),
]


@pytest.mark.parametrize(
    ("change", "param"), [c[1:] for c in BAD_EMBEDDINGS], ids=[c[0] for c in BAD_EMBEDDINGS]
)
def test_an_embedding_that_cannot_be_honoured_is_refused(
    edge: Any, change: dict[str, Any], param: str
) -> None:
    request = {"model": "embedder", "input": "x", **change}
    status, _, answer = edge.post_json("/v1/embeddings", request)

    assert status == 400
    assert answer["error"]["param"].startswith(param)


BAD_BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b'{"model": NaN}',
    b'{"model": "\xff\xfe"}',
    b'{"model": "\\ud800"}',
    b'{"temperature": 1e999}',
    b"[" * 5000,
    b'{"model": "chatty", "messages": [{"role": "user", "content": "x"}]} trailing',
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
@pytest.mark.parametrize("body", BAD_BODIES)
def test_broken_json_is_a_bad_request(edge: Any, path: str, body: bytes) -> None:
    status, _, answer = edge.post_json(path, body)

    assert status == 400
    assert answer["error"]["message"]


@pytest.mark.parametrize(
    ("path", "request_", "param"),
    [
        ("/v1/embeddings", {"model": "embedder", "input": "x"}, "input"),
        ("/v1/completions", {"model": "chatty", "prompt": "x"}, "prompt"),
        ("/v1/chat/completions", {"model": "chatty", "messages": USER}, "messages"),
        ("/v1/chat/completions", {"model": "chatty", "messages": USER, "stream": True}, "messages"),
    ],
)
def test_what_the_model_refuses_is_blamed_on_what_it_reads(
    edge: Any, path: str, request_: dict[str, Any], param: str
) -> None:
    edge.serving.failure = InvalidInput("the text has 2000 tokens; the model takes 1024")
    status, _, answer = edge.post_json(path, request_)

    assert (status, answer["error"]["param"]) == (400, param)


FAILURES = [
    (RateLimited("too many wait", 2.5), openai.RateLimitError, {"retry-after-ms": "2500"}),
    (Unavailable("no replica", 1.0), openai.InternalServerError, {"retry-after": "1"}),
    (DeadlineExceeded("too late"), openai.InternalServerError, {"x-should-retry": "false"}),
    (ModelFailed("it broke"), openai.InternalServerError, {"x-should-retry": "false"}),
    (RuntimeError("a bug of ours: secret"), openai.InternalServerError, {}),
]


@pytest.mark.parametrize(("failure", "kind", "headers"), FAILURES)
def test_failures_have_openais_class_and_headers(
    client: openai.OpenAI,
    edge: Any,
    failure: Exception,
    kind: type[openai.APIStatusError],
    headers: dict[str, str],
) -> None:
    edge.serving.failure = failure
    with pytest.raises(kind) as raised:
        client.embeddings.create(model="embedder", input="a")

    given = raised.value.response.headers
    assert given["x-request-id"].startswith("req_")
    assert {name: given[name] for name in headers} == headers
    assert "secret" not in raised.value.message


def test_the_sdk_retries_what_retry_after_promises(edge: Any, key: str) -> None:
    retrying = openai.OpenAI(base_url=f"{edge.url}/v1", api_key=key, max_retries=1)
    edge.serving.failure = RateLimited("too many wait", 0.01)

    assert retrying.embeddings.create(model="embedder", input="a").data


def test_the_asynchronous_sdk_works_too(edge: Any, key: str) -> None:
    async def talk() -> str:
        async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key=key) as client:
            stream = await client.chat.completions.create(
                model="chatty", messages=USER, stream=True
            )
            return "".join([c.choices[0].delta.content or "" async for c in stream])

    assert asyncio.run(talk()) == " user: tell me more assistant:"
