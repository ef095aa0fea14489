"""Both APIs answer as their OpenAPI documents say, whatever they are asked."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from account_parts import Account
from billing_parts import TOKEN, Service, running
from busbar_runtime.ports import PortPool
from neighbours import neighbours
from true_document import LIMIT_S, complaints

EXAMPLES = 2
PRICE_EXAMPLES = 4
INPUT = {"amount_nanos": 9, "per_units": 1_000, "free_units": 5_000, "tiers": []}
TIER = {"above_units": 10_000, "amount_nanos": 7, "per_units": 1_000}
TIERED = {
    "classes": {
        "default": {"request": {"amount_nanos": 1, "per_units": 1}},
        "chat": {"input_token": {**INPUT, "tiers": [TIER]}},
    },
    "effective_from": "2099-01-01T00:00:00Z",
}


@pytest.mark.timeout(LIMIT_S + 60)
def test_the_customers_document_is_true(mine: Account, tmp_path: Path) -> None:
    # It would revoke the key with which it asks.
    kept = ("--exclude-method", "DELETE", "--exclude-path-regex", "rotate$")
    key = mine.keys["administer"]["key"]

    assert complaints(mine.url, key, EXAMPLES, *kept, cwd=tmp_path) == ""


@pytest.mark.timeout(LIMIT_S + 60)
def test_the_operators_document_is_true(billing: Service, tmp_path: Path) -> None:
    # A price book would hold for the other tests, too: it is asked below.
    kept = ("--exclude-path", "/admin/v1/prices")

    assert complaints(billing.http_url, TOKEN, EXAMPLES, *kept, cwd=tmp_path) == ""


@pytest.mark.timeout(LIMIT_S + 60)
async def test_the_operators_document_is_true_of_prices(ports: PortPool, tmp_path: Path) -> None:
    async with (
        neighbours(tmp_path / "neighbours") as around,
        running(around.environment, ports) as billing,
    ):
        await billing.json("POST", "/prices", json=TIERED)
        only = ("--include-path", "/admin/v1/prices")
        url = billing.http_url
        said = await asyncio.to_thread(complaints, url, TOKEN, PRICE_EXAMPLES, *only, cwd=tmp_path)
        shown = (await billing.json("GET", "/prices"))["items"]

    assert said == ""
    assert "2099-01-01T00:00:00Z" in {one["effective_from"] for one in shown}
