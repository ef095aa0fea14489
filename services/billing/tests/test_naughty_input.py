"""SQL, control characters, marks that reorder text, in every field of every route of both APIs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import httpx
import pytest
from account_parts import Account, every_operation
from api_document import Operation, Request, Slot, operations
from billing_parts import Json, Service
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

SQL = ["'; DROP TABLE tenants; --", "x' OR '1'='1", "' UNION SELECT key_hmac FROM api_keys --"]
UNSHOWABLE = ["a\u0000b", "a\u202eb", "a\r\nb\u001b[31m"]
TEXTS = {"name", "reason", "reference", "note"}
AT_ONCE = 8
ALL_ROUTES_ONCE = settings(
    max_examples=1,
    phases=[Phase.generate],  # a failure names its request; there is nothing to shrink
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
Send = Callable[[Request], Awaitable[httpx.Response]]


async def unchanged(admin: asyncpg.Connection) -> dict[str, int]:
    """How much the tables hold that injected SQL would empty."""
    names = ("tenants", "transfers", "api_keys", "usage_records")
    counts = [await admin.fetchval(f"SELECT count(*) FROM {name}") for name in names]
    return dict(zip(names, counts, strict=True))


def planted(operation: Operation, good: Request, values: list[str]) -> list[tuple[Slot, Request]]:
    return [(slot, good.having(slot, value)) for slot in operation.strings() for value in values]


async def check_all(
    send: Send, requests: list[tuple[Slot, Request]], check: Callable[[httpx.Response, Slot], bool]
) -> None:
    room = asyncio.Semaphore(AT_ONCE)

    async def one(slot: Slot, request: Request) -> None:
        async with room:
            answer = await send(request)
        assert check(answer, slot), (request, slot.name, answer.status_code, answer.text[:300])

    await asyncio.gather(*(one(slot, request) for slot, request in requests))


def is_text_or_refused(answer: httpx.Response, slot: Slot) -> bool:
    """Taken for the text that it is, or refused as what it is not."""
    if answer.is_success:
        return slot.name in TEXTS or slot.where != "path"
    error = answer.json()["error"]
    return answer.status_code in {400, 404, 409, 422} and set(error) == {"message", "type", "code"}


def is_refused(answer: httpx.Response, slot: Slot) -> bool:
    """A filter may find nothing instead."""
    found_nothing = answer.status_code == 200 and answer.json().get("items") == []
    return answer.status_code in {400, 404, 422} or (slot.where == "query" and found_nothing)


@ALL_ROUTES_ONCE
@given(data=st.data())
async def test_customers_fields_hold_text_and_nothing_else(
    mine: Account, document: Json, admin: asyncpg.Connection, data: st.DataObject
) -> None:
    before = await unchanged(admin)
    for operation in every_operation(document):
        good = data.draw(operation.requests(mine.known))
        await check_all(mine.send, planted(operation, good, SQL), is_text_or_refused)
        await check_all(mine.send, planted(operation, good, UNSHOWABLE), is_refused)

    after = await unchanged(admin)
    assert all(after[name] >= count for name, count in before.items())


@ALL_ROUTES_ONCE
@given(data=st.data())
async def test_operators_fields_hold_text_and_nothing_else(
    billing: Service, mine: Account, admin: asyncpg.Connection, data: st.DataObject
) -> None:
    document = (await billing.client.get(f"{billing.http_url}/openapi.json")).json()
    # What everybody has is left alone: prices begin after this test, entities are new ones.
    known = {**mine.known, "effective_from": "2089-01-01T00:00:00Z", "entity_id": mine.tenant_id}

    async def send(request: Request) -> httpx.Response:
        body = {} if request.json is None else {"json": request.json}
        return await billing.call(request.method, request.url, params=request.query, **body)

    before = await unchanged(admin)
    for operation in operations(document, "/admin/v1"):
        good = data.draw(operation.requests(known))
        await check_all(send, planted(operation, good, SQL), is_text_or_refused)
        await check_all(send, planted(operation, good, UNSHOWABLE), is_refused)

    after = await unchanged(admin)
    assert all(after[name] >= count for name, count in before.items())


@pytest.mark.parametrize("value", [*SQL, "a\u202eb", "\u0000", "Bearer bb_\u202e", "Basic Og=="])
async def test_whatever_the_authorization_holds_is_not_a_key(
    billing: Service, mine: Account, value: str
) -> None:
    for scheme in ("", "Bearer "):
        headers = [(b"authorization", (scheme + value).encode())]
        for url in (f"{mine.url}/account/v1/tenant", f"{billing.http_url}/admin/v1/tenants"):
            try:
                answer = await anonymous(url, headers)
            except httpx.LocalProtocolError:
                continue  # cannot even be sent
            assert answer.status_code in {400, 401}, answer.text


async def anonymous(url: str, headers: list[tuple[bytes, bytes]]) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        return await client.get(url, headers=headers)
