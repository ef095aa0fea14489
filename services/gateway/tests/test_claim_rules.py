"""What a request claims before it runs: its input at today's prices, and the usual output."""

from __future__ import annotations

from dataclasses import replace

import pytest
from busbar_gateway.domain.credit import (
    Granted,
    Reservation,
    Wallet,
    apply_grant,
    close_lease,
    plan_ask,
)
from busbar_gateway.domain.estimates import (
    VAIN_HALVES_S,
    WorkHistory,
    least_nanos,
    likely_nanos,
    most_nanos,
)
from busbar_gateway.domain.prices import FREE, SCALE, Rates
from busbar_gateway.domain.routes import Manifest
from hypothesis import given, settings
from hypothesis import strategies as st

CHAT = Manifest("chat", "1", "chat", "tokens", max_input_tokens=32_768, max_output_tokens=1024)
TENSOR = Manifest("tensor", "1", "tensor", "bytes")
TOKENS = Rates(request=50 * SCALE, input_token=10 * SCALE, output_token=40 * SCALE)
BYTES = Rates(request=50 * SCALE, byte=2 * SCALE)


def history(count: int = 40, **work: int) -> WorkHistory:
    took = {"text_bytes": 40, "input_tokens": 10, "output_tokens": 5, **work}
    past = WorkHistory()
    for _ in range(count):
        past.add(**{"response_bytes": 100, "compute_us": 0, **took})
    return past


def test_a_long_prompt_after_short_ones_claims_its_own_length() -> None:
    past = history()

    short, long = (likely_nanos(CHAT, size, 0, TOKENS, past) for size in (40, 40_000))

    assert short == 50 + 10 * 10 + 5 * 40
    assert long == 50 + 10_000 * 10 + 5 * 40


def test_large_tensors_after_small_ones_claim_their_own_size() -> None:
    past = history(input_tokens=0, output_tokens=0)

    assert likely_nanos(TENSOR, 10**7, 0, BYTES, past) == 50 + 2 * (10**7 + 100)


def test_who_writes_in_short_tokens_is_known_to_the_model() -> None:
    past = history(text_bytes=1000, input_tokens=700)

    assert likely_nanos(CHAT, 10_000, 0, TOKENS, past) == 50 + 7_000 * 10 + 5 * 40


@pytest.mark.parametrize("factor", [0, 1, 3, 1000])
def test_what_was_learned_is_claimed_at_the_price_that_holds_now(factor: int) -> None:
    past = history()
    before = likely_nanos(CHAT, 40, 0, TOKENS, past)
    changed = Rates(
        request=factor * TOKENS.request,
        input_token=factor * TOKENS.input_token,
        output_token=factor * TOKENS.output_token,
    )

    assert likely_nanos(CHAT, 40, 0, changed, past) == factor * before
    assert likely_nanos(CHAT, 40, 0, replace(TOKENS), past) == before


def test_what_frames_a_short_text_is_not_taken_for_tokens() -> None:
    past = history(text_bytes=23, input_tokens=23, output_tokens=4)

    guessed = likely_nanos(CHAT, 312, 4, TOKENS, None, text_bytes=23)
    learned = likely_nanos(CHAT, 312, 4, TOKENS, past, text_bytes=23)
    least = least_nanos(CHAT, 312, TOKENS, past, text_bytes=23)

    assert guessed == 50 + (23 + 4) * 10 + 4 * 40  # a token a byte, and the model's own marks
    assert learned == 50 + 23 * 10 + 4 * 40
    assert least == 50 + 23 * 10
    assert most_nanos(CHAT, 312, 4, TOKENS, past, text_bytes=23) == learned


def test_what_is_put_around_a_short_text_is_not_expected_of_each_of_its_bytes() -> None:
    """ "Hi" in a chat template of ten tokens, then a page."""
    past = history(text_bytes=2, input_tokens=12)

    short, page = (least_nanos(CHAT, 300, TOKENS, past, text_bytes=size) for size in (2, 2_000))

    assert short == 50 + 12 * 10
    assert page == 50 + (500 + 12) * 10
    assert likely_nanos(CHAT, 300, 4, TOKENS, past, text_bytes=2) == 50 + 12 * 10 + 4 * 40


def test_short_and_long_texts_in_turn_are_each_known() -> None:
    past = WorkHistory()
    for _ in range(20):
        past.add(2, 12, 5, 100, 0)
        past.add(1_000, 710, 5, 100, 0)

    short, page = (least_nanos(CHAT, 300, TOKENS, past, text_bytes=size) for size in (2, 2_000))

    assert short == 50 + 12 * 10
    assert page == pytest.approx(50 + 1_430 * 10, rel=0.01)


def test_no_text_is_expected_to_have_more_tokens_than_bytes() -> None:
    past = history(text_bytes=64, input_tokens=96)

    assert least_nanos(CHAT, 300, TOKENS, past, text_bytes=2_000) == 50 + 2_000 * 10


def test_no_request_claims_more_than_it_can_cost() -> None:
    past = history(output_tokens=900)

    assert likely_nanos(CHAT, 40, 16, TOKENS, past) == 50 + 40 * 10 + 16 * 40
    assert likely_nanos(CHAT, 10**9, 1, TOKENS, past) == 50 + 32_768 * 10 + 40


def test_rare_long_answers_do_not_set_the_claim_but_usual_ones_do() -> None:
    past = history(31)
    past.add(40, 10, 1000, 100, 0)
    assert past.likely_rest(TOKENS) == 5 * TOKENS.output_token

    for _ in range(31):
        past.add(40, 10, 1000, 100, 0)

    assert past.likely_rest(TOKENS) == 1000 * TOKENS.output_token


@given(
    st.lists(st.tuples(*[st.integers(0, 10**6)] * 5), max_size=80),
    st.sampled_from([TOKENS, BYTES, Rates(compute_us=SCALE), Rates()]),
    st.integers(0, 40),
)
def test_a_history_is_the_same_whenever_prices_came(
    works: list[tuple[int, ...]], rates: Rates, changed_after: int
) -> None:
    early, late = WorkHistory(), WorkHistory()
    for number, (size, *took) in enumerate(works):
        if number == changed_after:
            early.likely_rest(rates)
        for past in (early, late):
            past.add(size, *took)

    assert early.likely_rest(rates) == late.likely_rest(rates)


def test_what_was_worked_in_vain_is_claimed_until_it_was_paid_for_or_is_long_ago() -> None:
    past = WorkHistory()
    past.worked_in_vain(8_000, 100.0)
    past.worked_in_vain(5_000, 101.0)
    at_once, later = past.at_least(101.0), past.at_least(101.0 + 2 * VAIN_HALVES_S)
    past.paid(8_000, 101.0)

    assert (at_once, later, past.at_least(101.0)) == (8_000, 2_000, 4_000)
    assert WorkHistory().at_least(0.0) == 0


def test_what_was_claimed_before_there_was_work_in_vain_shows_nothing_of_it_when_paid() -> None:
    past = WorkHistory()
    past.worked_in_vain(1_000_000, 100.0)
    for _ in range(5):  # were let in beside it, as what they usually are
        past.paid(50_000, 101.0)
    beside = past.at_least(101.0)
    past.paid(500_000, 100.0 + VAIN_HALVES_S)

    assert beside == 1_000_000
    assert past.at_least(100.0 + VAIN_HALVES_S) == 250_000


def test_what_was_worked_in_vain_raises_a_claim_to_what_the_request_can_cost() -> None:
    past = WorkHistory()
    past.worked_in_vain(8_000, 100.0, 9_000)

    assert [past.at_least(100.0, most) for most in (None, 9_000, 300)] == [8_000, 8_000, 300]


def test_what_came_to_more_than_it_could_is_believed_the_next_time() -> None:
    past = WorkHistory()
    past.worked_in_vain(8_000, 100.0)
    past.worked_in_vain(700, 100.0, 300)
    at_once, later = (past.at_least(at, 300) for at in (100.0, 100.0 + 2 * VAIN_HALVES_S))

    assert (at_once, later) == (1_200, 300)


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**9)), max_size=40),
    st.integers(1, 10**6),
)
def test_a_few_requests_are_worked_for_nothing_whatever_they_were_to_cost(
    requests: list[tuple[int, int]], balance: int
) -> None:
    past, free = WorkHistory(), 0
    for most, came_to in requests:
        if past.at_least(0.0, most) <= balance < came_to:
            past.worked_in_vain(came_to, 0.0, most)
            free += 1

    assert free <= 1 + (10**9).bit_length()


@pytest.mark.parametrize(
    ("manifest", "rates", "longest", "most"),
    [
        (CHAT, TOKENS, 0, 50 + 10 * 10 + 1024 * 40),
        (CHAT, TOKENS, 16, 50 + 10 * 10 + 16 * 40),
        (replace(CHAT, max_output_tokens=0), TOKENS, 0, None),
        (replace(CHAT, task="embed"), TOKENS, 0, 50 + 10 * 10),
        (CHAT, replace(TOKENS, compute_us=SCALE), 16, None),
        (TENSOR, TOKENS, 0, None),
        (TENSOR, BYTES, 0, None),
        (TENSOR, Rates(request=50 * SCALE), 0, 50),
    ],
    ids=["model", "asked", "endless", "embed", "compute", "counting", "bytes", "flat"],
)
def test_what_a_request_costs_at_most_is_known_where_its_answer_is_bounded(
    manifest: Manifest, rates: Rates, longest: int, most: int | None
) -> None:
    assert most_nanos(manifest, 40, longest, rates, None) == most


def test_the_least_is_what_the_request_and_its_input_cost_and_never_nothing() -> None:
    past = WorkHistory()
    past.add(100, 70, 500, 0, 0)

    assert least_nanos(CHAT, 1_000, TOKENS, past) == 50 + 700 * 10
    assert least_nanos(CHAT, 1_000, TOKENS, past) < likely_nanos(CHAT, 1_000, 0, TOKENS, past)
    assert least_nanos(TENSOR, 10, FREE, None) == 1


def lend(wallet: Wallet, nanos: int, now: float) -> None:
    """Give back what the tenant has, or lend it more."""
    lease = wallet.lease
    closes = lease is not None and nanos % 3 == 0
    ask = close_lease(wallet) if closes else plan_ask(wallet, [nanos + 1], now, now)
    if ask is not None:
        lent = ask.want_nanos + (lease.granted_nanos if lease is not None else 0)
        lease_id = ask.lease_id or int(now * 100).to_bytes(8, "big")
        apply_grant(wallet, ask, Granted("t", lease_id, lent, ttl_s=9.0), now, now)


def claimed(wallet: Wallet, claims: list[Reservation], kind: str, nanos: int, now: float) -> None:
    """Do something to one of the claims, or make another."""
    claim = claims[nanos % len(claims)] if claims else None
    if kind == "reserve" or claim is None:
        made = wallet.reserve(nanos // 3, now, billing_away=True, likely_nanos=nanos)
        claims += [made] if made is not None else []
    elif kind == "extend":
        wallet.extend(claim, nanos)
    elif kind == "spend":
        wallet.spend(claim, nanos)
    elif kind == "release":
        wallet.release(claim)
    else:
        wallet.take_back(claim)


STEPS = ["lend", "recall", "reserve", "reserve", "extend", "spend", "release", "take back"]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 500)), min_size=20, max_size=40))
def test_what_is_free_of_a_lease_is_what_nobody_has_or_claims(
    steps: list[tuple[str, int]],
) -> None:
    wallet, claims, now = Wallet("t"), list[Reservation](), 0.0
    for kind, nanos in [("lend", 500), *steps]:
        now += 0.01 + nanos / 100
        if kind == "lend":
            lend(wallet, nanos, now)
        elif kind == "recall":
            wallet.recalled = True
            plan_ask(wallet, [], now, now)
        else:
            claimed(wallet, claims, kind, nanos, now)

        leases = [one.lease for one in claims] + [lease for lease in [wallet.lease] if lease]
        for lease in leases:
            held = sum(one.nanos for one in claims if one.lease is lease)
            taken = lease.returned_nanos + lease.spent_nanos + held
            assert lease.free_nanos == lease.granted_nanos - taken
            assert lease.reserved_nanos == held
