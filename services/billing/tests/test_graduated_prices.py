"""Tiers, monthly allowances, cached tokens and prices of one tenant."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from billing_parts import Gateway, Json, Service
from busbar_billing.adapters.postgres.tenants import Tenants
from busbar_billing.domain.audit.price_rows import check_versions
from busbar_billing.domain.metering import Meter, meters_of
from busbar_billing.domain.prices import (
    FALLBACK_CLASS,
    PER_UNITS,
    Component,
    Price,
    PriceBook,
    PriceBooks,
    Tier,
    checked_classes,
)
from busbar_billing.domain.rating import SCALE, explain, month_of, rate
from busbar_billing.domain.usage import check_billable
from busbar_billing.usecases.post_usage import rate_records
from busbar_billing.usecases.prices import end_prices, publish_prices
from busbar_errors import Conflict, Rejected
from hypothesis import given
from hypothesis import strategies as st
from planted import TENANT, Parts
from usage_records import PLAIN

TIERED = Price(10, 1, free_units=100, tiers=(Tier(1_000, 5, 1), Tier(2_000, 1, 1)))


def book(*, version: int = 1, begins: int = 0, **prices: Price) -> PriceBook:
    classes = {
        "chat-small": {Component(name): price for name, price in prices.items()},
        FALLBACK_CLASS: {Component.REQUEST: Price(7, 1)},
    }
    return PriceBook(version, "USD", begins, 1, classes)


@pytest.mark.parametrize(
    ("before", "tokens", "nanos"),
    [
        (0, 100, 0),  # the whole allowance
        (0, 101, 10),
        (99, 2, 10),
        (100, 900, 9_000),  # to the last unit below the tier
        (100, 901, 9_005),
        (0, 3_000, 900 * 10 + 1_000 * 5 + 1_000 * 1),
        (2_000, 7, 7),
        (10**14, 7, 7),
        (50, 0, 0),
    ],
)
def test_tiers_are_graduated_by_what_was_used_in_the_month(
    before: int, tokens: int, nanos: int
) -> None:
    used = {Component.INPUT_TOKEN: before}
    record = dataclasses.replace(PLAIN, input_tokens=tokens)

    assert rate(record, book(input_token=TIERED), used).charge_nanos == nanos


def test_a_tiered_rating_is_explained_step_by_step() -> None:
    record = dataclasses.replace(PLAIN, input_tokens=1_000)
    prices = book(input_token=TIERED).classes["chat-small"]
    lines = explain(record, prices, {Component.INPUT_TOKEN: 50})

    assert [(one.before, one.quantity, one.price.amount_nanos) for one in lines] == [
        (50, 50, 0),
        (100, 900, 10),
        (1_000, 50, 5),
    ]


def test_seconds_and_megabytes_reach_their_tiers_in_their_own_units() -> None:
    listed = book(compute_second=Price(1_000_000, 1, free_units=1, tiers=(Tier(2, 10, 1),)))
    record = dataclasses.replace(PLAIN, compute_us=2_500_000)

    assert rate(record, listed).charge_nanos == 1_000_000 + 5


tiers = st.lists(st.tuples(st.integers(1, 500), st.integers(0, 10**6)), max_size=4)
graduated = st.builds(
    lambda free, first, steps, per: Price(
        first,
        per,
        free,
        tuple(
            Tier(free + sum(width for width, _ in steps[: index + 1]), nanos, per)
            for index, (_, nanos) in enumerate(steps)
        ),
    ),
    st.integers(0, 300),
    st.integers(0, 10**6),
    tiers,
    st.sampled_from(PER_UNITS),
)


@given(graduated, st.integers(0, 3_000), st.lists(st.integers(0, 1_000), min_size=1, max_size=6))
def test_a_months_use_costs_the_same_however_it_is_cut_into_requests(
    price: Price, before: int, parts: list[int]
) -> None:
    prices = {Component.INPUT_TOKEN: price}

    def exact(start: int, tokens: int) -> int:
        record = dataclasses.replace(PLAIN, input_tokens=tokens)
        lines = explain(record, prices, {Component.INPUT_TOKEN: start})

        assert sum(line.quantity for line in lines) == tokens
        return sum(line.exact for line in lines)

    apart = sum(exact(before + sum(parts[:index]), part) for index, part in enumerate(parts))

    assert apart == exact(before, sum(parts))


@given(graduated, st.integers(0, 3_000), st.integers(0, 2_000))
def test_nobody_pays_more_than_the_dearest_step(price: Price, before: int, tokens: int) -> None:
    record = dataclasses.replace(PLAIN, input_tokens=tokens)
    lines = explain(record, {Component.INPUT_TOKEN: price}, {Component.INPUT_TOKEN: before})
    most = price.dearest

    assert sum(line.exact for line in lines) <= tokens * most.amount_nanos * (
        SCALE // most.per_units
    )


def test_a_cached_token_has_its_own_price_or_is_an_input_token() -> None:
    record = dataclasses.replace(PLAIN, input_tokens=10, cached_tokens=4)

    without = book(input_token=Price(100, 1))
    beside = book(input_token=Price(100, 1), cached_token=Price(10, 1))
    assert rate(record, without).charge_nanos == 1_000
    assert rate(record, beside).charge_nanos == 6 * 100 + 4 * 10


def test_more_cached_than_input_tokens_cannot_be_true() -> None:
    with pytest.raises(Rejected, match="cached_tokens is 5"):
        check_billable(dataclasses.replace(PLAIN, input_tokens=4, cached_tokens=5))


@given(st.lists(st.integers(0, 700), min_size=1, max_size=8), st.integers(0, 2_000))
def test_a_batch_is_rated_as_its_records_one_after_the_other(
    tokens: Sequence[int], used: int
) -> None:
    listed = PriceBooks([book(input_token=TIERED)])
    records = [
        dataclasses.replace(PLAIN, request_id=UUID(int=number), input_tokens=count)
        for number, count in enumerate(tokens)
    ]
    [meter] = meters_of(PLAIN, listed.version(1))
    rated, _ = rate_records(records, listed, {"acme": "USD"}, uuid4, {meter: used})

    assert [one.rating.before[Component.INPUT_TOKEN] for one in rated] == [
        used + sum(tokens[:number]) for number in range(len(tokens))
    ]
    for one in rated:  # what the auditor does: the same amount from what is kept with the record
        again = rate(one.record, listed.version(1), one.rating.before)
        assert again == one.rating


def test_a_month_is_that_of_admission_in_utc() -> None:
    last = datetime(2026, 11, 30, 23, 59, 59, 999_999, tzinfo=UTC)
    last_ns = int(last.timestamp()) * 10**9 + 999_999_999

    assert month_of(last_ns) == date(2026, 11, 1)
    assert month_of(last_ns + 1) == date(2026, 12, 1)
    record = dataclasses.replace(PLAIN, admitted_unix_ns=last_ns, price_class="unheard-of")
    fallback = PriceBook(1, "USD", 0, 1, {FALLBACK_CLASS: {Component.REQUEST: TIERED}})
    assert meters_of(record, fallback) == [
        Meter("acme", date(2026, 11, 1), FALLBACK_CLASS, Component.REQUEST)
    ]


def own(version: int, begins: int, until: int | None = None, tenant: str = "acme") -> PriceBook:
    return dataclasses.replace(
        book(version=version, begins=begins), tenant_id=tenant, effective_until_unix_ns=until
    )


def test_a_tenants_own_prices_take_the_place_of_everybodys_while_they_last() -> None:
    everybodys, first, second = book(), own(2, 100, 200), own(3, 300)
    listed = PriceBooks([everybodys, first, second])

    in_force = {at: listed.in_force("USD", at, "acme") for at in (0, 99, 100, 199, 200, 299, 300)}
    assert [one.version for one in in_force.values()] == [1, 1, 2, 2, 1, 1, 3]
    assert listed.in_force("USD", 150, "bolt") is everybodys
    assert listed.in_force("USD", 150) is everybodys


@pytest.mark.parametrize(
    ("begins", "until"),
    [(100, None), (50, 101), (50, 350), (150, 301), (299, 301), (300, None)],
)
def test_prices_that_overlap_are_refused(begins: int, until: int | None) -> None:
    listed = PriceBooks([book(), own(2, 100, 200), own(3, 300)])

    with pytest.raises(Conflict, match=r"same moment|1970-01-01 00:00:00 UTC"):
        listed.check_no_overlap(own(0, begins, until))


@pytest.mark.parametrize(
    ("begins", "until"),
    [(50, 100), (50, None), (200, 300), (400, 500), (150, None), (150, 160), (150, 300)],
)
def test_prices_that_follow_each_other_are_not_refused(begins: int, until: int | None) -> None:
    known = [book(), own(2, 100, 200), own(3, 300)]
    following, anothers = own(4, begins, until), own(5, 150, None, tenant="bolt")
    for added in (following, anothers):
        PriceBooks(known).check_no_overlap(added)
    listed = PriceBooks([*known, following, anothers])

    assert listed.in_force("USD", begins, "acme") is following
    assert listed.in_force("USD", 160, "bolt") is anothers
    assert not check_versions(listed)


def test_what_begins_while_another_holds_ends_it_for_good() -> None:
    everybodys, freebie, instead, after = book(), own(2, 100, 200), own(3, 150, 160), own(4, 300)
    listed = PriceBooks([everybodys, freebie, instead, after])
    in_force = {at: listed.in_force("USD", at, "acme") for at in (149, 150, 160, 199, 300)}

    assert [one.version for one in in_force.values()] == [2, 3, 1, 1, 4]
    assert [listed.ended_by(one) for one in (freebie, instead, after)] == [None, freebie, None]
    assert [listed.following(one) for one in (freebie, instead)] == [instead, everybodys]
    assert [listed.following(one) for one in (everybodys, after)] == [None, None]


def test_the_audit_finds_an_end_that_reaches_into_what_was_published_before_it() -> None:
    found = check_versions(PriceBooks([book(), own(2, 150), own(3, 100, 200)]))

    assert [one.subject for one in found] == ["price book 2"]


def test_the_end_of_a_tenants_prices_does_not_hide_an_earlier_version_behind_it() -> None:
    listed = PriceBooks([book(), own(2, 100), own(3, 200, 300)])

    assert listed.in_force("USD", 300, "acme").version == 1


@pytest.mark.parametrize(
    "prices",
    [
        {Component.REQUEST: Price(1, 1, free_units=-1)},
        {Component.REQUEST: Price(1, 1, free_units=10**15 + 1)},
        {Component.REQUEST: Price(1, 1, 0, (Tier(0, 1, 1),))},
        {Component.REQUEST: Price(1, 1, 100, (Tier(100, 1, 1),))},
        {Component.REQUEST: Price(1, 1, 0, (Tier(20, 1, 1), Tier(10, 1, 1)))},
        {Component.REQUEST: Price(1, 1, 0, (Tier(20, 1, 1), Tier(20, 2, 1)))},
        {Component.REQUEST: Price(1, 1, 0, (Tier(20, -1, 1),))},
        {Component.REQUEST: Price(1, 1, 0, (Tier(20, 1, 7),))},
        {Component.REQUEST: Price(1, 1, 0, (Tier(10**15 + 1, 1, 1),))},
        {Component.REQUEST: Price(1, 1, 0, tuple(Tier(n, 1, 1) for n in range(1, 22)))},
        {Component.CACHED_TOKEN: Price(1, 1)},
        {Component.CACHED_TOKEN: Price(2, 1), Component.INPUT_TOKEN: Price(1, 1)},
        {
            Component.CACHED_TOKEN: Price(1, 1_000, 0, (Tier(5, 3, 1_000),)),
            Component.INPUT_TOKEN: Price(2_000, 1_000_000),
        },
    ],
)
def test_tiers_that_make_no_sense_are_refused(prices: dict[Component, Price]) -> None:
    with pytest.raises(Rejected):
        checked_classes({FALLBACK_CLASS: {Component.REQUEST: Price(1, 1)}, "chat-small": prices})


def wanted_prices(**changes: Any) -> Json:
    """100 tokens free, 1,000 at 100 nanos, 10 nanos above."""
    entry: Json = {
        "amount_nanos": 100,
        "free_units": 100,
        "tiers": [{"above_units": 1_100, "amount_nanos": 10}],
    }
    classes = {"chat-small": {"input_token": entry}, "default": {"request": {"amount_nanos": 1}}}
    return {"classes": classes, **changes}


async def test_an_allowance_is_given_once_a_month_and_given_back_by_a_void(
    billing: Service, gateway: Gateway, tenant: str, admin: asyncpg.Connection
) -> None:
    published = await billing.json("POST", "/prices", json=wanted_prices(tenant_id=tenant))
    later_ns = just_after(published["effective_from"])
    records = [
        gateway.record(tenant, input_tokens=tokens, admitted_unix_ns=later_ns)
        for tokens in (60, 60, 1_000, 500)
    ]
    for record in records:
        await gateway.publish(record)
        await gateway.publish(record)
    posted = await billing.posted(tenant, 4)

    amounts = {one["request_id"]: one["amount_nanos"] for one in posted}
    assert [amounts[f"req_{one.request_id.hex()}"] for one in records] == [
        0,
        2_000,
        980 * 100 + 20 * 10,
        5_000,
    ]
    explained = await billing.json("GET", f"/usage/req_{records[2].request_id.hex()}")
    assert explained["price_version"] == published["version"]
    assert [(one["used_before"], one["quantity"]) for one in explained["lines"]] == [
        (120, 980),
        (1_100, 20),
    ]
    await gateway.publish(voids=(gateway.void(records[3]),))
    await gateway.publish(gateway.record(tenant, input_tokens=1, admitted_unix_ns=later_ns))
    await billing.posted(tenant, 5)
    query = "SELECT quantity FROM monthly_use WHERE tenant_id = $1"
    assert await admin.fetchval(query, tenant) == 1_121


async def test_who_leaves_out_a_class_is_told_that_the_fallback_charges_it(
    billing: Service, tenant: str
) -> None:
    begins = "2060-01-01T00:00:00Z"
    own = {"default": {"request": {"amount_nanos": 1}}}
    wanted = wanted_prices(tenant_id=tenant, effective_from=begins)
    first = await billing.json("POST", "/prices", json=wanted)
    wanted |= {"effective_from": "2061-01-01T00:00:00Z", "classes": own}
    second = await billing.json("POST", "/prices", json=wanted)

    everybodys = await classes_of_everybody(billing, begins)
    assert {*first["left_to_default"]} == everybodys - {"chat-small", "default"}
    assert {*second["left_to_default"]} == (everybodys | {"chat-small"}) - {"default"}


async def classes_of_everybody(billing: Service, at: str) -> set[str]:
    """Those priced then for who has no prices of their own; other tests publish, too."""
    listed = (await billing.json("GET", "/prices"))["items"]
    held = [
        one
        for one in listed
        if (one["tenant_id"], one["currency"]) == (None, "USD") and one["effective_from"] <= at
    ]
    return {*max(held, key=lambda one: one["effective_from"])["classes"]}


async def test_prices_of_one_tenant_are_shown_and_refused_where_they_overlap(
    billing: Service, tenant: str
) -> None:
    begins = datetime.now(UTC) + timedelta(days=3)
    until = (begins + timedelta(days=1)).isoformat()
    body = wanted_prices(tenant_id=tenant, effective_from=begins.isoformat(), effective_until=until)
    answers = await asyncio.gather(*(billing.call("POST", "/prices", json=body) for _ in range(3)))
    listed = (await billing.json("GET", "/prices"))["items"]

    assert sorted(answer.status_code for answer in answers) == [201, 409, 409]
    [shown] = [one for one in listed if one["tenant_id"] == tenant]
    assert not shown["in_force"]
    assert datetime.fromisoformat(shown["effective_until"]) == datetime.fromisoformat(until)
    assert shown["classes"]["chat-small"]["input_token"]["tiers"] == [
        {"above_units": 1_100, "amount_nanos": 10, "per_units": 1}
    ]


@pytest.mark.parametrize(
    ("path", "field"), [("/prices", "effective_from"), ("/prices/ends", "effective_until")]
)
async def test_no_price_changes_before_gateways_can_know(
    billing: Service, tenant: str, path: str, field: str
) -> None:
    await billing.json("POST", "/prices", json=wanted_prices(tenant_id=tenant))
    given: Json = {"tenant_id": tenant}
    wanted = wanted_prices(**given) if field == "effective_from" else given
    published_at = datetime.now(UTC)
    soon = published_at + timedelta(seconds=5)
    refused = await billing.call("POST", path, json=wanted | {field: soon.isoformat()})
    taken = await billing.json("POST", path, json=wanted)

    assert refused.status_code == 422
    assert "10 s after they are published" in refused.json()["error"]["message"]
    assert datetime.fromisoformat(taken[field]) - published_at >= timedelta(seconds=10)


async def test_prices_that_took_too_long_to_write_do_not_change(busy: Parts) -> None:
    asked_ns = time.time_ns() - 6 * 10**9  # of the ten seconds until they were to hold
    prices, tenants = busy.prices, Tenants(busy.pool, busy.prices)
    before = await prices.all()
    [held] = [book for book in before.newest_first if book.tenant_id == TENANT]
    with pytest.raises(Conflict, match="took too long"):
        await publish_prices(
            prices,
            tenants,
            currency="USD",
            effective_from_unix_ns=None,
            quantum_nanos=1,
            classes=held.classes,
            note="",
            now_unix_ns=asked_ns,
        )
    with pytest.raises(Conflict, match="took too long"):
        await end_prices(
            prices, tenants, tenant_id=TENANT, ends_unix_ns=None, note="", now_unix_ns=asked_ns
        )

    assert (await busy.prices.all()).newest_first == before.newest_first


def just_after(shown: str) -> int:
    """A second after a moment that the API shows, Unix time in nanoseconds."""
    return round(datetime.fromisoformat(shown).timestamp() * 1e9) + 10**9


async def test_who_publishes_prices_with_an_end_is_told_what_they_end_and_what_follows(
    billing: Service, tenant: str
) -> None:
    async def publish(**changes: Any) -> Json:
        return await billing.json("POST", "/prices", json=wanted_prices(**changes))

    forever = await publish(tenant_id=tenant)
    since, until = "2090-01-01T00:00:00Z", "2091-01-01T00:00:00Z"
    dated = await publish(tenant_id=tenant, effective_from=since, effective_until=until)
    sooner = "2090-06-01T00:00:00Z"
    instead = await publish(tenant_id=tenant, effective_from=sooner)

    assert (forever["ends"], forever["followed_by"]) == (None, None)
    assert dated["ends"]["version"] == forever["version"]
    assert dated["ends"]["effective_until"] is None
    assert dated["followed_by"]["tenant_id"] is None  # everybody's
    assert instead["ends"] == {
        "version": dated["version"],
        "tenant_id": tenant,
        "effective_until": until,
    }
    assert instead["followed_by"] is None


async def test_a_tenants_own_prices_end_and_everybodys_hold_again(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    own = await billing.json("POST", "/prices", json=wanted_prices(tenant_id=tenant))
    ended = await billing.json("POST", "/prices/ends", json={"tenant_id": tenant})
    late_ns = just_after(ended["effective_until"])
    record = gateway.record(tenant, admitted_unix_ns=late_ns)
    await gateway.publish(record)
    await billing.posted(tenant, 1)
    again = await billing.call("POST", "/prices/ends", json={"tenant_id": tenant})

    explained = await billing.json("GET", f"/usage/req_{record.request_id.hex()}")
    assert ended["ends"]["version"] == own["version"]
    assert ended["followed_by"]["tenant_id"] is None
    assert explained["price_version"] == ended["followed_by"]["version"]
    assert again.status_code == 422
    assert "no prices of its own" in again.json()["error"]["message"]


async def test_a_tenants_own_prices_hold_unchanged_until_they_are_to_end(
    billing: Service, tenant: str
) -> None:
    own = await billing.json("POST", "/prices", json=wanted_prices(tenant_id=tenant))
    wanted = {"tenant_id": tenant, "effective_until": "2090-01-01T00:00:00Z", "note": "as agreed"}
    ended = await billing.json("POST", "/prices/ends", json=wanted)
    listed = (await billing.json("GET", "/prices"))["items"]
    twice = await billing.call("POST", "/prices/ends", json=wanted)
    past = await billing.call(
        "POST", "/prices/ends", json=wanted | {"effective_until": "2020-01-01T00:00:00Z"}
    )

    assert ended["classes"] == own["classes"]
    assert ended["effective_from"] > own["effective_from"]
    assert (ended["effective_until"], ended["note"]) == ("2090-01-01T00:00:00Z", "as agreed")
    assert [one["effective_until"] for one in listed if one["version"] == own["version"]] == [None]
    assert (twice.status_code, past.status_code) == (422, 422)
    assert "already" in twice.json()["error"]["message"]
    assert "has passed" in past.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"tenant_id": "nobody-we-know"}, 404),
        ({"tenant_id": "'; DROP TABLE tenants; --"}, 422),
        ({"effective_until": "2050-01-01T00:00:00Z"}, 422),  # for everybody
    ],
)
async def test_prices_for_nobody_or_without_an_end_are_refused(
    billing: Service, change: Json, status: int
) -> None:
    answer = await billing.call("POST", "/prices", json=wanted_prices(**change))

    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
