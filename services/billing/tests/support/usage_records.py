"""Billable records for tests: as the domain reads them, and as they lie on the bus."""

from __future__ import annotations

import dataclasses
import time
from typing import Any
from uuid import UUID

from busbar_billing.domain.usage import Outcome, UsageRecord
from busbar_contracts.gateway.v1 import usage_pb2
from uuid_utils.compat import uuid7

ADMITTED_NS = 1_800_000_000 * 10**9
PLAIN = UsageRecord(
    request_id=UUID(int=1),
    tenant_id="acme",
    key_id="key_1",
    deployment="simple",
    price_class="chat-small",
    api="openai.chat",
    outcome=Outcome.COMPLETED,
    admitted_unix_ns=ADMITTED_NS,
    finished_unix_ns=ADMITTED_NS + 10**9,
    input_tokens=0,
    output_tokens=0,
    request_bytes=0,
    response_bytes=0,
    compute_us=0,
    node="r1.s1.n1",
    attempt=1,
    gateway_id="g1",
    traceparent="",
)
"""An answer in which nothing is to be counted."""


def a_record(**changes: object) -> UsageRecord:
    """PLAIN with these changes."""
    return dataclasses.replace(PLAIN, **changes)  # pyright: ignore[reportArgumentType]


def answered(tenant_id: str, **changes: Any) -> usage_pb2.UsageRecord:
    """An answer of just now with 1,000 input tokens at 100 nanos: 100,000 nanos."""
    now_ns = time.time_ns()
    plain: dict[str, Any] = {
        "request_id": uuid7().bytes,
        "tenant_id": tenant_id,
        "key_id": "key_test",
        "deployment": "tiny-lm",
        "price_class": "chat-small",
        "api": "openai.chat",
        "outcome": usage_pb2.USAGE_OUTCOME_COMPLETED,
        "admitted_unix_ns": now_ns - 10**6,
        "finished_unix_ns": now_ns,
        "input_tokens": 1_000,
        "attempt": 1,
        "node": "r1.s1.n1",
    }
    return usage_pb2.UsageRecord(**{**plain, **changes})
