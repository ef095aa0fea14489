"""An answer that several attempts made is the one that a single attempt would have made.

The model here is deterministic and tells of its text as vLLM and tiny-lm do: tokens are
counted when they are made, text comes only once it cannot become a stop string any more.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from busbar_gateway.domain.continuation import Continuation
from hypothesis import given
from hypothesis import strategies as st

PROMPT = "the prompt"
CONTEXT = 120
ENDS_ONE_IN = 60


@dataclass(frozen=True)
class Piece:
    text: bytes
    reason: str
    input_tokens: int
    output_tokens: int
    """Since the attempt began."""


def next_token(context: bytes) -> bytes:
    """One of few letters, so that stop strings come up, or the end; nothing else decides."""
    number = zlib.crc32(context)
    return b"" if number % ENDS_ONE_IN == 0 else b"abc\xc3\xa4"[number // 60 % 3 :][:1]


def generate(
    prompt: str, tokens_max: int, stops: tuple[str, ...], interval: int
) -> Iterator[Piece]:
    """As tiny-lm generates, a token a byte."""
    read, made, held, unsent, started = prompt.encode(), 0, "", "", False
    keep = max(map(len, stops), default=1) - 1
    while True:
        token, reason = next_token(read), ""
        read, made = read + token, made + 1
        held += token.decode()
        found = [at for stop in stops if (at := held.find(stop)) >= 0]
        if found or not token:
            reason, held = "stop", held[: min(found, default=len(held))]
        elif made == min(tokens_max, CONTEXT - len(prompt)):
            reason = "length"
        cut = len(held) if reason else max(0, len(held) - keep)
        unsent, held = unsent + held[:cut], held[cut:]
        if reason or (unsent and (not started or made % interval == 0)):
            yield Piece(unsent.encode(), reason, len(prompt), made)
            unsent, started = "", True
        if reason:
            return


@dataclass
class Told:
    """What a customer got, and what it pays for."""

    text: str
    reason: str | None
    tokens: tuple[int, int]
    attempts: int


def told(tokens_max: int, stops: tuple[str, ...], interval: int, cuts: tuple[int, ...]) -> Told:
    """Run it with attempts that end after so many pieces each; the one after the last is whole."""
    answer = Continuation(tokens_max, stops)
    text, prompt, limit, attempts, left = "", PROMPT, tokens_max, 1, list(cuts)
    while True:
        cut = left.pop(0) if left else 10**6
        for number, piece in enumerate(generate(prompt, limit, stops, interval)):
            if number == cut:
                break
            answer.count(piece.input_tokens, piece.output_tokens)
            text += answer.take(piece.text, piece.reason)
            if piece.reason:
                break
        if answer.complete:
            text += answer.end()
            tokens = (answer.input_tokens, answer.output_tokens)
            return Told(text, answer.finish_reason, tokens, attempts)
        if answer.output_tokens:  # before the first piece the request itself goes out again
            delivered, limit = answer.resume()
            prompt = PROMPT + delivered
        attempts += 1


@given(
    tokens_max=st.integers(1, 100),
    stops=st.lists(st.text("abc", min_size=1, max_size=7), max_size=3).map(tuple),
    interval=st.integers(1, 6),
    cuts=st.lists(st.integers(0, 12), max_size=5).map(tuple),
)
def test_cuts_change_neither_text_nor_counts(
    tokens_max: int, stops: tuple[str, ...], interval: int, cuts: tuple[int, ...]
) -> None:
    undisturbed = told(tokens_max, stops, interval, ())
    disturbed = told(tokens_max, stops, interval, cuts)

    assert disturbed.text == undisturbed.text
    assert disturbed.reason == undisturbed.reason
    assert disturbed.attempts <= len(cuts) + 3
    if disturbed.tokens != undisturbed.tokens:  # a stop string across the last two attempts
        assert undisturbed.reason == "stop"
        assert 0 < undisturbed.tokens[1] - disturbed.tokens[1] < max(map(len, stops))


def test_a_limit_that_was_counted_ahead_is_made_up_for() -> None:
    stops = ("zzzzzz",)
    undisturbed, disturbed = told(40, stops, 4, ()), told(40, stops, 4, (3,))

    assert undisturbed.tokens == (len(PROMPT), 40)
    assert (disturbed.text, disturbed.tokens) == (undisturbed.text, undisturbed.tokens)
    assert disturbed.attempts == 3


def test_a_model_that_counts_no_prompt_is_charged_once_for_what_it_made() -> None:
    answer = Continuation()
    answer.count(0, 5)
    answer.take(b"hello", "")
    answer.resume()

    assert answer.count(0, 3) == (0, 8)


def test_cached_tokens_are_those_of_the_prompt_that_the_first_attempt_found() -> None:
    answer = Continuation()
    answer.count(8, 2, 6)
    answer.take(b"he", "")
    answer.resume()
    answer.count(10, 2, 10)

    assert (answer.input_tokens, answer.cached_tokens) == (8, 6)


def test_no_more_tokens_are_cached_than_there_are() -> None:
    answer = Continuation()
    answer.count(8, 2, 9)

    assert answer.cached_tokens == 8


def test_a_character_that_was_cut_is_made_anew() -> None:
    answer = Continuation()
    answer.count(3, 2)
    first = answer.take("aä".encode()[:2], "")
    taken_over, _ = answer.resume()
    answer.count(4, 2)

    assert first == taken_over == "a"
    assert answer.take("ä".encode(), "stop") == "ä"


def test_another_attempt_draws_other_numbers() -> None:
    answer = Continuation()
    answer.count(3, 7)
    answer.resume()

    assert answer.seed_from(42) == 49
    assert answer.seed_from(2**63 - 1) < 2**63
