"""The books of a platform that has served: `busbar audit` finds nothing."""

from __future__ import annotations

from typing import Any

import httpx
from busbar_runtime.platform import Platform
from harness.audit import assert_audit_clean
from harness.operator import Customer, Operator
from harness.polling import eventually

BODY: dict[str, Any] = {"model": "all-minilm-l6-v2", "input": "who audits the auditor"}


async def test_after_requests_of_every_end_the_books_are_right(
    platform: Platform, operator: Operator, customer: Customer
) -> None:
    headers = {"authorization": f"Bearer {customer.key}"}
    async with httpx.AsyncClient(
        base_url=platform.endpoints["http"],
        headers=headers,
        timeout=30,
        trust_env=False,
        verify=False,
    ) as client:
        answers = [await client.post("/v1/embeddings", json=BODY) for _ in range(5)]
        assert all(answer.is_success for answer in answers)
        refused = await client.post("/v1/embeddings", json={"model": "nobody"})
        assert refused.is_client_error
    await operator.usage_of(answers[-1].headers["x-request-id"])

    known = await eventually(  # a billing that was just started has not looked yet
        lambda: operator.json("billing", "GET", "/admin/v1/audits"),
        within_s=90,
        what="the continuous audit has swept",
        until=lambda seen: seen["swept_at"] is not None,
    )
    assert known["breaches"] == [], known

    report = await assert_audit_clean(platform)
    rows = {check["check"]: check["rows"] for check in report["checks"]}
    assert rows["charges_rated_again"] >= 5
    assert rows["records_charged_once"] >= 5
    assert rows["answers_charged"] >= 5
    assert rows["charges_answered"] >= 5
    assert rows["transfers_balanced"] >= 7  # with a top-up and a lease
    assert rows["leases_held"] >= 1
