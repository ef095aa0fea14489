"""Rating and double entry: the rules, and what must hold for any numbers."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from uuid import UUID, uuid4

import pytest
from busbar_billing.domain import ledger
from busbar_billing.domain.leases import Funding
from busbar_billing.domain.ledger import Account, AccountKind, Posting, Transfer, TransferKind
from busbar_billing.domain.money import (
    checked_currency,
    checked_top_up,
    round_half_even,
    say_amount,
)
from busbar_billing.domain.prices import (
    FALLBACK_CLASS,
    PER_UNITS,
    Component,
    Price,
    PriceBook,
    PriceBooks,
    checked_classes,
)
from busbar_billing.domain.rating import SCALE, Rating, explain, rate
from busbar_billing.domain.usage import (
    UsageRecord,
    UsageVoid,
    check_billable,
    first_of_each,
)
from busbar_billing.usecases.post_usage import charge_of, rate_records
from busbar_errors import NotFound, Rejected
from hypothesis import given
from hypothesis import strategies as st
from usage_records import a_record


def from_balance(rating: Rating) -> Funding:
    return Funding(0, rating.charge_nanos, 0)


def charged_for(one: UsageRecord, listed: PriceBook) -> Transfer:
    rating = rate(one, listed)
    return ledger.charge(uuid4(), one.request_id, one.tenant_id, rating, from_balance(rating))


def affordable(one: UsageRecord, listed: PriceBook) -> bool:
    """Whether it is not refused for costing more than any request may."""
    try:
        rate(one, listed)
    except Rejected:
        return False
    return True


FREE = {Component.REQUEST: Price(0, 1)}


def book(quantum_nanos: int = 1, **prices: Price) -> PriceBook:
    classes = {
        "chat-small": {Component(name): price for name, price in prices.items()},
        FALLBACK_CLASS: {Component.REQUEST: Price(7, 1)},
    }
    return PriceBook(1, "USD", 0, quantum_nanos, classes)


@pytest.mark.parametrize(
    ("numerator", "denominator", "rounded"),
    [(1, 2, 0), (3, 2, 2), (5, 2, 2), (7, 2, 4), (-1, 2, 0), (-3, 2, -2), (4, 3, 1), (5, 3, 2)],
)
def test_half_is_rounded_to_even(numerator: int, denominator: int, rounded: int) -> None:
    assert round_half_even(numerator, denominator) == rounded


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**15))
def test_rounding_agrees_with_decimal(numerator: int, denominator: int) -> None:
    with localcontext() as context:
        context.prec = 80
        expected = (Decimal(numerator) / Decimal(denominator)).quantize(
            Decimal(1), rounding=ROUND_HALF_EVEN
        )

    assert round_half_even(numerator, denominator) == int(expected)


@pytest.mark.parametrize(
    ("prices", "usage", "nanos"),
    [
        ({"input_token": Price(100_000_000, 1_000_000)}, {"input_tokens": 3}, 300),
        ({"output_token": Price(1, 1_000)}, {"output_tokens": 500}, 0),
        ({"output_token": Price(1, 1_000)}, {"output_tokens": 1_500}, 2),
        ({"output_token": Price(1, 1_000)}, {"output_tokens": 501}, 1),
        ({"request": Price(1_000, 1)}, {}, 1_000),
        ({"compute_second": Price(2_000_000, 1)}, {"compute_us": 250_000}, 500_000),
        ({"megabyte": Price(8, 1)}, {"request_bytes": 10**6, "response_bytes": 5 * 10**5}, 12),
        (
            {"input_token": Price(1, 1_000_000), "output_token": Price(3, 1_000_000)},
            {"input_tokens": 250_000, "output_tokens": 250_000},
            1,
        ),
        ({}, {"input_tokens": 10}, 0),
    ],
)
def test_a_record_costs_quantity_times_price_rounded_once(
    prices: dict[str, Price], usage: dict[str, int], nanos: int
) -> None:
    rating = rate(a_record(**usage), book(1, **prices))

    assert rating.charge_nanos == nanos
    assert rating.rated_class == "chat-small"


def test_a_class_without_prices_is_rated_by_the_fallback_and_says_so() -> None:
    rating = rate(a_record(price_class="unheard-of"), book())

    assert rating.charge_nanos == 7
    assert rating.rated_class == FALLBACK_CLASS


def test_a_request_that_would_cost_more_than_a_million_is_refused() -> None:
    with pytest.raises(Rejected, match="would cost"):
        rate(a_record(input_tokens=10**9), book(input_token=Price(10**15, 1)))


def test_a_charge_is_rounded_to_the_books_quantum_and_the_remainder_is_booked() -> None:
    rating = rate(a_record(input_tokens=1_499), book(1_000, input_token=Price(1, 1)))
    charged = ledger.charge(UUID(int=2), UUID(int=1), "acme", rating, from_balance(rating))

    assert [line.amount_nanos for line in charged.postings] == [-1_000, 1_499, -499]
    assert charged.postings[2].account.kind is AccountKind.ROUNDING


prices = st.builds(Price, st.integers(0, 10**9), st.sampled_from(PER_UNITS))
books = st.builds(
    lambda quantum, listed: PriceBook(1, "USD", 0, quantum, {"chat-small": listed}),
    st.sampled_from([1, 10, 1_000, 10_000_000]),
    st.dictionaries(st.sampled_from(Component), prices),
)
usages = st.builds(
    a_record,
    request_id=st.uuids(),
    tenant_id=st.sampled_from(["acme", "bolt"]),
    input_tokens=st.integers(0, 10**6),
    output_tokens=st.integers(0, 10**5),
    request_bytes=st.integers(0, 10**8),
    response_bytes=st.integers(0, 10**8),
    compute_us=st.integers(0, 10**8),
)


@given(usages, books)
def test_the_lines_of_a_rating_sum_to_what_is_charged(
    usage: UsageRecord, listed: PriceBook
) -> None:
    rating = rate(usage, listed)
    exact = sum(line.exact for line in explain(usage, listed.classes["chat-small"]))

    assert abs(rating.charge_nanos * SCALE - exact) * 2 <= listed.quantum_nanos * SCALE
    assert abs(rating.earned_nanos * SCALE - exact) * 2 <= SCALE


@given(usages, books)
def test_the_exact_amount_of_a_line_is_shown_as_a_decimal(
    usage: UsageRecord, listed: PriceBook
) -> None:
    for line in explain(usage, listed.classes["chat-small"]):
        assert Decimal(line.exact_nanos) * SCALE == line.exact


@given(usages, books)
def test_every_charge_and_every_void_sums_to_zero(usage: UsageRecord, listed: PriceBook) -> None:
    charged = charged_for(usage, listed)
    taken_back = ledger.void(uuid4(), charged, "not delivered", lease_open=True)

    assert ledger.totals(charged.postings) == {"USD": 0}
    assert ledger.totals(taken_back.postings) == {"USD": 0}
    assert ledger.balances([charged, taken_back]) == {}
    assert ledger.balances([ledger.correction(uuid4(), charged, "wrong"), charged]) == {}


class Book:
    """The journal as a fake: the rule of post_usage without a database."""

    def __init__(self, listed: PriceBook) -> None:
        self.books = PriceBooks([listed])
        self.transfers: dict[str, Transfer] = {}
        self.voids: dict[UUID, UsageVoid] = {}

    def deliver(self, message: UsageRecord | UsageVoid) -> None:
        if isinstance(message, UsageVoid):
            self.voids.setdefault(message.request_id, message)
        else:
            rated, _ = rate_records([message], self.books, {"acme": "USD", "bolt": "USD"}, uuid4)
            self.post([charge_of(one, from_balance(one.rating)) for one in rated])
        taken_back = [
            ledger.void(uuid4(), charged, one.reason, lease_open=True)
            for one in self.voids.values()
            if (charged := self.transfers.get(f"charge:{one.request_id}"))
        ]
        self.post(taken_back)

    def post(self, transfers: Sequence[Transfer]) -> None:
        for transfer in transfers:
            self.transfers.setdefault(transfer.idempotency_key, transfer)


@given(st.data(), st.lists(usages, max_size=4, unique_by=lambda one: one.request_id), books)
def test_repeats_in_any_order_leave_one_charge_each_and_voids_net_to_zero(
    data: st.DataObject, records: list[UsageRecord], listed: PriceBook
) -> None:
    records = [one for one in records if affordable(one, listed)]
    voided = [one for one in records if data.draw(st.booleans())]
    messages: list[UsageRecord | UsageVoid] = [*records, *records]
    messages += [UsageVoid(one.request_id, one.tenant_id, "gone") for one in voided * 2]
    held = Book(listed)
    for message in data.draw(st.permutations(messages)):
        held.deliver(message)

    kept = [one for one in records if one not in voided]
    expected = [charged_for(one, listed) for one in kept]
    assert len(held.transfers) == len(records) + len(voided)
    assert ledger.balances(held.transfers.values()) == ledger.balances(expected)


transfers = st.builds(
    ledger.top_up,
    st.uuids(),
    st.sampled_from(["acme", "bolt"]),
    st.integers(1, 10**15),
    st.sampled_from(["USD", "EUR"]),
    st.text(min_size=1, max_size=5),
)


@given(st.lists(transfers), st.lists(transfers))
def test_balances_do_not_depend_on_grouping_or_order(
    first: list[Transfer], second: list[Transfer]
) -> None:
    together = ledger.balances(first + second)
    apart: dict[Account, int] = ledger.balances(first)
    for account, amount in ledger.balances(second).items():
        apart[account] = apart.get(account, 0) + amount

    assert together == {account: amount for account, amount in apart.items() if amount}
    assert together == ledger.balances([*second, *reversed(first)])


def test_a_transfer_that_does_not_sum_to_zero_cannot_be_built() -> None:
    account = Account(AccountKind.REVENUE, None, "USD")
    euros = Account(AccountKind.REVENUE, None, "EUR")
    off_balance = [
        (),
        (Posting(account, 1),),
        (Posting(account, 1), Posting(euros, -1)),
    ]
    for postings in off_balance:
        with pytest.raises(ledger.Unbalanced):
            Transfer(UUID(int=1), TransferKind.CORRECTION, "correction:1", postings)


def test_the_price_in_force_at_admission_counts() -> None:
    first = PriceBook(1, "USD", 100, 1, {})
    second = PriceBook(2, "USD", 200, 1, {})
    euros = PriceBook(3, "EUR", 0, 1, {})
    listed = PriceBooks([second, euros, first])

    assert listed.in_force("USD", 199) is first
    assert listed.in_force("USD", 200) is second
    assert listed.in_force("USD", 50) is first  # before the first began: still not for free
    assert listed.version(3) is euros
    with pytest.raises(Rejected, match="GBP"):
        listed.in_force("GBP", 200)
    with pytest.raises(NotFound):
        listed.version(4)


@pytest.mark.parametrize(
    "classes",
    [
        {},
        {"chat-small": {Component.REQUEST: Price(1, 1)}},
        {FALLBACK_CLASS: {}},
        {FALLBACK_CLASS: FREE, "Not A Class": FREE},
        {FALLBACK_CLASS: FREE, "empty": {}},
        {FALLBACK_CLASS: {Component.REQUEST: Price(-1, 1)}},
        {FALLBACK_CLASS: {Component.REQUEST: Price(10**15 + 1, 1)}},
        {FALLBACK_CLASS: {Component.REQUEST: Price(1, 7)}},
        {FALLBACK_CLASS: FREE, **{f"class-{n}": FREE for n in range(1_000)}},
    ],
)
def test_a_price_book_that_makes_no_sense_is_refused(
    classes: dict[str, dict[Component, Price]],
) -> None:
    with pytest.raises(Rejected):
        checked_classes(classes)


@pytest.mark.parametrize(
    "changes",
    [
        {"input_tokens": 10**9 + 1},
        {"output_tokens": 2**64 - 1},
        {"request_bytes": 2**41},
        {"compute_us": 2**63},
        {"attempt": 2**31},
        {"admitted_unix_ns": 0},
        {"finished_unix_ns": 2**63 - 1},
        {"admitted_unix_ns": -1},
        {"tenant_id": ""},
        {"deployment": "x" * 201},
        {"key_id": "a\x00b"},
    ],
)
def test_a_record_that_no_gateway_can_have_meant_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(Rejected):
        check_billable(a_record(**changes))


def test_a_refused_record_does_not_hold_up_its_neighbours() -> None:
    good, bad = a_record(), a_record(request_id=UUID(int=9), input_tokens=2**60)
    stranger = a_record(request_id=UUID(int=8), tenant_id="nobody")
    rated, refused = rate_records(
        [bad, good, stranger], PriceBooks([book()]), {"acme": "USD"}, uuid4
    )

    assert [one.record for one in rated] == [good]
    assert [one.record for one in refused] == [bad, stranger]
    assert "does not exist" in refused[1].reason


def test_of_repeats_in_one_batch_the_first_counts() -> None:
    first, second = a_record(input_tokens=1), a_record(input_tokens=2)
    other = a_record(request_id=UUID(int=2))

    assert first_of_each([first, other, second, first]) == [first, other]


@pytest.mark.parametrize("amount", [0, -1, 10**15 + 1, -(2**63)])
def test_an_absurd_top_up_is_refused(amount: int) -> None:
    with pytest.raises(Rejected):
        checked_top_up(amount)


@pytest.mark.parametrize(
    "code", ["", "usd", "US", "USDT", "U$D", "ЮSD", "XYZ", "ZZZ", "XAU", "XTS", "XXX", "DEM", "CHE"]
)
def test_what_is_no_currency_in_use_is_refused(code: str) -> None:
    with pytest.raises(Rejected):
        checked_currency(code)


@pytest.mark.parametrize("code", ["USD", "EUR", "JPY", "XOF", "ZWG"])
def test_a_currency_in_use_is_taken(code: str) -> None:
    assert checked_currency(code) == code


@pytest.mark.parametrize(
    ("nanos", "said"),
    [
        (14_000, "0.000014 USD (14000 nanos)"),
        (1_000 * 10**9, "1,000.00 USD (1000000000000 nanos)"),
        (-1_500_000_000, "-1.50 USD (-1500000000 nanos)"),
        (0, "0.00 USD (0 nanos)"),
    ],
)
def test_refusals_tell_amounts_to_people_and_to_programs(nanos: int, said: str) -> None:
    assert say_amount(nanos, "USD") == said
