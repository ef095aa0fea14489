"""Who passes the gate before the admin APIs, and how large a body may be."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from busbar_observability.operator_gate import BODY_BYTES_MAX, OperatorGate, OperatorToken
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

TOKEN = "an-operator-töken"


async def length_of_body(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    paths = ("/bounded", "/unbounded")
    app = Starlette(routes=[Route(path, length_of_body, methods=["POST"]) for path in paths])
    gate = OperatorGate(app, OperatorToken(TOKEN), unbounded_paths={"/unbounded"})
    transport = httpx.ASGITransport(gate)
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
        yield client


def bearer(token: str = TOKEN) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {token}".encode()}


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer wrong")],
        [(b"authorization", TOKEN.encode())],
        [(b"authorization", f"Basic {TOKEN}".encode())],
        [(b"authorization", f"Bearer {TOKEN}".encode()), (b"authorization", b"Bearer wrong")],
        [(b"authorization", b"Bearer \xff\x00")],
    ],
)
@pytest.mark.parametrize("path", ["/bounded", "/no-such-path"])
async def test_no_path_answers_without_the_token(
    client: httpx.AsyncClient, headers: list[tuple[bytes, bytes]], path: str
) -> None:
    answer = await client.post(path, headers=headers)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="busbar"'
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "unauthorized")
    assert error["message"]


async def test_the_token_opens_and_the_scheme_may_be_written_in_any_case(
    client: httpx.AsyncClient,
) -> None:
    for scheme in ("Bearer", "bearer", "BEARER"):
        headers = {b"authorization": f"{scheme} {TOKEN} ".encode()}

        answer = await client.post("/bounded", headers=headers, content=b"four")

        assert (answer.status_code, answer.text) == (200, "4")


@pytest.mark.parametrize("announced", [True, False])
async def test_only_named_paths_take_large_bodies(
    client: httpx.AsyncClient, *, announced: bool
) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"x" * BODY_BYTES_MAX
        yield b"x"

    body = b"x" * (BODY_BYTES_MAX + 1)
    content = body if announced else parts()
    refused = await client.post("/bounded", headers=bearer(), content=content)
    content = body if announced else parts()
    taken = await client.post("/unbounded", headers=bearer(), content=content)

    assert refused.status_code == 413
    assert refused.json()["error"]["code"] == "body_too_large"
    assert (taken.status_code, taken.text) == (200, str(len(body)))
