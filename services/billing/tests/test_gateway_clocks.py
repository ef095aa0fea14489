"""A gateway whose clock is off: prices hold by the clock of the stream."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from billing_parts import Gateway, Service
from busbar_billing.domain.usage import (
    CLOCK_AHEAD_MAX_NS,
    CLOCK_BEHIND_MAX_NS,
    Outcome,
    UsageRecord,
    by_the_stream_clock,
)

STORED_NS = 1_800_000_000 * 10**9
TOOK_NS = 7 * 10**9
HOUR_NS = 3_600 * 10**9
LISTED_NANOS, OWN_NANOS = 100, 250
"""What 1,000 input tokens cost a thousandth of: in the seeded prices, and in a tenant's own."""


def finished_at(at_ns: int) -> UsageRecord:
    return UsageRecord(
        request_id=UUID(int=1), tenant_id="acme", key_id="key_1", deployment="simple",
        price_class="chat-small", api="openai.chat", outcome=Outcome.COMPLETED,
        admitted_unix_ns=at_ns - TOOK_NS, finished_unix_ns=at_ns, input_tokens=1,
        output_tokens=0, request_bytes=0, response_bytes=0, compute_us=0, node="r1.s1.n1",
        attempt=1, gateway_id="g1", traceparent="",
    )  # fmt: skip


@pytest.mark.parametrize(
    "ahead_ns", [HOUR_NS, -HOUR_NS, CLOCK_AHEAD_MAX_NS + 1, -CLOCK_BEHIND_MAX_NS - 1, -STORED_NS]
)
def test_times_that_cannot_be_right_move_to_when_the_record_was_stored(ahead_ns: int) -> None:
    wrong = finished_at(STORED_NS + ahead_ns)
    moved = by_the_stream_clock(wrong, STORED_NS)

    assert moved == dataclasses.replace(
        wrong, admitted_unix_ns=STORED_NS - TOOK_NS, finished_unix_ns=STORED_NS
    )


@pytest.mark.parametrize("ahead_ns", [0, CLOCK_AHEAD_MAX_NS, -CLOCK_BEHIND_MAX_NS])
def test_times_that_may_be_right_stay(ahead_ns: int) -> None:
    record = finished_at(STORED_NS + ahead_ns)

    assert by_the_stream_clock(record, STORED_NS) is record


def prices_of(tenant_id: str, begins: datetime | None) -> dict[str, Any]:
    dear = {"input_token": {"amount_nanos": OWN_NANOS, "per_units": 1}}
    return {
        "tenant_id": tenant_id,
        "note": "of the tests",
        "classes": {"default": dear, "chat-small": dear},
        **({"effective_from": begins.isoformat()} if begins else {}),
    }


async def charged(billing: Service, gateway: Gateway, tenant: str, clock_off_ns: int) -> int:
    """What a record of 1,000 tokens costs that a gateway wrote whose clock is so far off."""
    record = gateway.record(tenant)
    record.admitted_unix_ns += clock_off_ns
    record.finished_unix_ns += clock_off_ns
    before = await billing.metric("busbar_billing_clock_corrected_total")
    await gateway.publish(record)
    [usage] = await billing.posted(tenant, 1)
    admitted = datetime.fromisoformat(usage["admitted_at"])
    assert abs(admitted - datetime.now(UTC)) < timedelta(minutes=1)
    assert await billing.metric("busbar_billing_clock_corrected_total") == before + 1
    return usage["amount_nanos"]


async def test_with_a_clock_ahead_the_price_to_come_does_not_hold_yet(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    begins = datetime.now(UTC) + timedelta(minutes=30)
    await billing.json("POST", "/prices", json=prices_of(tenant, begins))

    assert await charged(billing, gateway, tenant, HOUR_NS) == 1_000 * LISTED_NANOS


async def test_with_a_clock_behind_the_price_of_now_holds(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    published = await billing.json("POST", "/prices", json=prices_of(tenant, None))
    await billing.prices_hold(published["version"])

    assert await charged(billing, gateway, tenant, -HOUR_NS) == 1_000 * OWN_NANOS
