"""The OpenAI API, through OpenAI's own SDK, against the real platform."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Iterator

import numpy as np
import openai
import pytest
from busbar_runtime.platform import Platform
from harness.operator import Customer

EMBEDDER, CHATTER = "all-minilm-l6-v2", "tiny-lm"


@pytest.fixture
def client(platform: Platform, customer: Customer) -> Iterator[openai.OpenAI]:
    base_url = platform.endpoints["http"] + "/v1"
    with openai.OpenAI(base_url=base_url, api_key=customer.key, max_retries=0) as made:
        yield made


def cosine(left: list[float], right: list[float]) -> float:
    a, b = np.array(left), np.array(right)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    listed = {model.id for model in client.models.list()}

    assert {EMBEDDER, CHATTER, "simple"} <= listed
    assert client.models.retrieve(EMBEDDER).id == EMBEDDER
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("no-such-model")
    assert refused.value.code == "model_not_found"


def test_sentences_that_mean_the_same_have_similar_embeddings(client: openai.OpenAI) -> None:
    sentences = [
        "The cat sits on the mat.",
        "A cat is resting on a rug.",
        "Interest rates rose today.",
    ]

    answer = client.embeddings.create(model=EMBEDDER, input=sentences)

    vectors = [item.embedding for item in answer.data]
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert cosine(vectors[0], vectors[1]) > 0.5
    assert cosine(vectors[0], vectors[2]) < 0.3
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(sentences)


def test_base64_embeddings_hold_the_same_numbers(client: openai.OpenAI) -> None:
    floats = client.embeddings.create(model=EMBEDDER, input="watts", encoding_format="float")
    raw = client.embeddings.with_raw_response.create(
        model=EMBEDDER, input="watts", encoding_format="base64"
    )
    packed = base64.b64decode(json.loads(raw.text)["data"][0]["embedding"])

    unpacked = struct.unpack(f"<{len(packed) // 4}f", packed)
    assert unpacked == pytest.approx(floats.data[0].embedding, abs=1e-5)


def test_a_chat_completion_streams_and_says_what_it_used(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=CHATTER,
        messages=[{"role": "user", "content": "What does a node agent do?"}],
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)

    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    finishes = [
        c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason
    ]
    usage = chunks[-1].usage
    assert len(chunks) > 3
    assert text
    assert finishes in (["length"], ["stop"])
    assert chunks[-1].choices == []
    assert usage is not None
    assert 0 < usage.completion_tokens <= 24
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_streamed_and_plain_answers_agree_when_sampling_is_off(client: openai.OpenAI) -> None:
    def ask(stream: bool) -> str:
        asked = {
            "model": CHATTER,
            "messages": [{"role": "user", "content": "Describe the ledger."}],
            "max_completion_tokens": 20,
            "temperature": 0,
        }
        if stream:
            chunks = client.chat.completions.create(**asked, stream=True)  # type: ignore[call-overload]
            return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        return client.chat.completions.create(**asked).choices[0].message.content or ""  # type: ignore[call-overload]

    assert ask(stream=True) == ask(stream=False)


def test_a_seed_makes_sampling_repeatable(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str:
        answer = client.completions.create(
            model=CHATTER,
            prompt="The gateway",
            max_tokens=24,
            temperature=1.0,
            top_p=0.9,
            seed=seed,
        )
        return answer.choices[0].text

    assert ask(7) == ask(7)
    assert len({ask(1), ask(2), ask(3), ask(4)}) > 1


def test_a_stop_string_ends_the_text_and_is_not_part_of_it(client: openai.OpenAI) -> None:
    asked = {"model": CHATTER, "prompt": "The scheduler", "max_tokens": 64, "temperature": 0}
    whole = client.completions.create(**asked).choices[0].text  # type: ignore[call-overload]
    stop = whole[len(whole) // 2]

    cut = client.completions.create(**asked, stop=[stop]).choices[0]  # type: ignore[call-overload]

    assert cut.finish_reason == "stop"
    assert cut.text == whole.partition(stop)[0]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"n": 2}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 20_000}]}, "messages"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"frequency_penalty": 1.0}, "frequency_penalty"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ],
)
def test_a_parameter_that_would_change_the_meaning_is_refused_by_name(
    client: openai.OpenAI, changes: dict[str, object], param: str
) -> None:
    asked = {"model": CHATTER, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}

    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{**asked, **changes})  # type: ignore[call-overload]

    assert refused.value.type == "invalid_request_error"
    assert param in f"{refused.value.param} {refused.value.message}"


def test_an_enormous_prompt_is_refused_with_the_limit(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match=r"at most \d+ bytes") as refused:
        client.completions.create(model=CHATTER, prompt="x" * 200_000)

    assert refused.value.status_code == 413


@pytest.mark.parametrize("tokens", [[1, 2, 3], [[1, 2], [3]]])
def test_token_arrays_are_refused_clearly(client: openai.OpenAI, tokens: list[int]) -> None:
    with pytest.raises(openai.BadRequestError, match=r"(?i)token"):
        client.embeddings.create(model=EMBEDDER, input=tokens)


def test_a_model_of_another_kind_is_refused_with_what_to_use(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="simple"):
        client.embeddings.create(model="simple", input="hello")


def test_a_wrong_key_is_an_authentication_error(platform: Platform) -> None:
    base_url = platform.endpoints["http"] + "/v1"
    for key in ("bb_wrong", "' OR 1=1 --", "bb_" + "x" * 4000):
        with (
            openai.OpenAI(base_url=base_url, api_key=key, max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()


def test_every_answer_carries_a_request_id(client: openai.OpenAI) -> None:
    plain = client.embeddings.with_raw_response.create(model=EMBEDDER, input="x")
    with client.chat.completions.with_streaming_response.create(
        model=CHATTER, messages=[{"role": "user", "content": "x"}], max_tokens=2, stream=True
    ) as streamed:
        stream_id = streamed.headers["x-request-id"]
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("nope")

    ids = [plain.headers["x-request-id"], stream_id, missing.value.response.headers["x-request-id"]]
    assert all(re.fullmatch(r"req_[0-9a-f]{32}", found) for found in ids)
    assert len(set(ids)) == 3
