"""The same request under one Idempotency-Key: one answer, one charge."""

from __future__ import annotations

import asyncio
import secrets
from http import HTTPStatus
from typing import Any

import httpx
import pytest
from busbar_runtime.platform import Platform
from harness.operator import Customer, Operator
from harness.polling import eventually

CHAT: dict[str, Any] = {
    "model": "tiny-lm",
    "messages": [{"role": "user", "content": "Where does the money live?"}],
    "max_tokens": 16,
}
TEXT: dict[str, Any] = {"model": "tiny-lm", "prompt": "Where does the money", "max_tokens": 16}
COMMENT = b": keep-alive\n\n"


def client_of(platform: Platform, customer: Customer) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=platform.endpoints["http"],
        headers={"authorization": f"Bearer {customer.key}"},
        timeout=60,
        trust_env=False,
        verify=False,
    )


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", CHAT | {"stream": True}),
        ("/v1/completions", TEXT),
    ],
    ids=["whole", "stream", "completions"],
)
async def test_eight_at_once_and_one_later_are_one_answer_and_one_charge(
    platform: Platform, operator: Operator, customer: Customer, path: str, body: dict[str, Any]
) -> None:
    keyed = {"idempotency-key": secrets.token_hex(8)}
    before = await operator.balance(customer.tenant_id)

    async with client_of(platform, customer) as client:

        async def ask() -> httpx.Response:
            return await client.post(path, json=body, headers=keyed)

        answers = await asyncio.gather(*[ask() for _ in range(8)])
        answers.append(await ask())
        other = await client.post(path, json=body | {"max_tokens": 15}, headers=keyed)

    record = await operator.usage_of(answers[0].headers["x-request-id"])
    assert {answer.status_code for answer in answers} == {HTTPStatus.OK}
    assert len({answer.content.replace(COMMENT, b"") for answer in answers}) == 1
    assert len({answer.headers["x-request-id"] for answer in answers}) == 1
    assert other.status_code == HTTPStatus.CONFLICT
    assert len(await operator.usage(customer.tenant_id)) == 1
    assert await operator.balance(customer.tenant_id) == before - record["amount_nanos"]


async def test_a_kept_answer_is_for_those_who_may_ask_for_it(
    platform: Platform, operator: Operator, customer: Customer
) -> None:
    keyed = {"idempotency-key": secrets.token_hex(8)}
    tenant = f"/admin/v1/tenants/{customer.tenant_id}"
    narrow = await operator.key(customer.tenant_id, ["simple"])
    as_narrow = keyed | {"authorization": f"Bearer {narrow['key']}"}

    async with client_of(platform, customer) as client:

        async def ask(headers: dict[str, str]) -> tuple[int, bool]:
            answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
            return answer.status_code, "idempotent-replayed" in answer.headers

        async def comes_to(headers: dict[str, str], expected: tuple[int, bool]) -> None:
            await eventually(
                lambda: ask(headers), within_s=30, what=f"{expected}", until=expected.__eq__
            )

        assert await ask(keyed) == (HTTPStatus.OK, False)
        await comes_to(as_narrow, (HTTPStatus.NOT_FOUND, False))
        await operator.json("billing", "POST", f"{tenant}/suspend", json={"reason": "unpaid"})
        await comes_to(keyed, (HTTPStatus.FORBIDDEN, False))
        await operator.json("billing", "POST", f"{tenant}/resume")
        await comes_to(keyed, (HTTPStatus.OK, True))
    charged = await eventually(
        lambda: operator.usage(customer.tenant_id), within_s=30, what="the charge"
    )

    assert len(charged) == 1


async def test_a_key_is_its_tenants_own(
    platform: Platform, operator: Operator, customer: Customer
) -> None:
    keyed = {"idempotency-key": secrets.token_hex(8)}
    other = await operator.customer()
    requests: set[str] = set()
    for each in (customer, other):
        async with client_of(platform, each) as client:
            answer = await client.post("/v1/chat/completions", json=CHAT, headers=keyed)
        assert answer.status_code == HTTPStatus.OK
        assert "idempotent-replayed" not in answer.headers
        requests.add(answer.headers["x-request-id"])

    assert len(requests) == 2
