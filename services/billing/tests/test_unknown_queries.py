"""A query parameter that a route does not know may have meant something: it is refused."""

from __future__ import annotations

import re

import httpx
from account_parts import Account
from billing_parts import Json, Service


def reads(document: Json) -> list[str]:
    """Every path that can be read, with something in its places."""
    paths = [path for path, operations in document["paths"].items() if "get" in operations]
    assert len(paths) > 10
    return [re.sub(r"\{[a-z_]+\}", "x", path) for path in paths]


def assert_refused(answer: httpx.Response) -> None:
    assert answer.status_code == 422, (answer.url, answer.text)
    error = answer.json()["error"]
    assert "there is no query parameter 'tenant' here; there are: " in error["message"]
    assert error["code"] == "invalid_value"


async def test_no_route_of_operators_ignores_a_misspelt_filter(billing: Service) -> None:
    document = (await billing.client.get(f"{billing.http_url}/openapi.json")).json()
    for path in reads(document):
        url = f"{billing.http_url}{path}"
        assert_refused(await billing.client.get(url, params={"tenant": "x"}))


async def test_no_route_of_customers_ignores_a_misspelt_filter(
    mine: Account, document: Json
) -> None:
    headers = {"authorization": f"Bearer {mine.keys['administer']['key']}"}
    for path in reads(document):
        url = f"{mine.url}{path}"
        assert_refused(await mine.client.get(url, params={"tenant": "x"}, headers=headers))
