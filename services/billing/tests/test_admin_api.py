"""The operator's API: what it does, and everything it refuses."""

from __future__ import annotations

import asyncio
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from billing_parts import Gateway, Json, Service

PRICES: Json = {"default": {"request": {"amount_nanos": 5, "per_units": 1}}}


async def test_a_tenant_is_created_found_and_listed(billing: Service) -> None:
    name = f"Ácme {uuid4().hex[:6]}"
    made = await billing.json("POST", "/tenants", json={"name": name})
    own_id = f"t-{uuid4().hex[:8]}"
    chosen = await billing.json("POST", "/tenants", json={"name": own_id, "tenant_id": own_id})

    assert made["name"] == name
    assert made["currency"] == "USD"
    assert chosen["tenant_id"] == own_id
    assert await billing.json("GET", f"/tenants/{made['tenant_id']}") == made
    other = f"C {own_id}"
    again = await billing.call("POST", "/tenants", json={"name": other, "tenant_id": own_id})
    assert again.status_code == 409
    listed = await every(billing, "/tenants", limit=50)
    assert {made["tenant_id"], own_id} <= {one["tenant_id"] for one in listed}


@pytest.mark.parametrize("same", ["{}", " {} ", "{:upper}"])
async def test_no_two_tenants_are_called_alike(billing: Service, same: str) -> None:
    name = f"Caf\u00e9 {uuid4().hex[:6]}"
    await billing.json("POST", "/tenants", json={"name": name})
    alike = name.upper() if same == "{:upper}" else same.format(name)
    again = await billing.call("POST", "/tenants", json={"name": alike})
    decomposed = {"name": name.replace("\u00e9", "e\u0301")}
    composed = await billing.call("POST", "/tenants", json=decomposed)

    assert again.status_code == composed.status_code == 409
    assert alike.strip() in again.json()["error"]["message"]


async def test_no_tenant_is_called_as_another_ones_id(billing: Service) -> None:
    first, second = f"t-{uuid4().hex[:8]}", f"t-{uuid4().hex[:8]}"
    await billing.json("POST", "/tenants", json={"name": f"B {first}", "tenant_id": first})
    named = await billing.call("POST", "/tenants", json={"name": first})
    await billing.json("POST", "/tenants", json={"name": second})
    having = {"name": f"C {second}", "tenant_id": second}
    same_id = await billing.call("POST", "/tenants", json=having)

    assert named.status_code == same_id.status_code == 409
    assert first in named.json()["error"]["message"]


async def every(billing: Service, path: str, **params: Any) -> list[Json]:
    """All items, page by page."""
    items: list[Json] = []
    cursor: str | None = None
    while True:
        extra = {"cursor": cursor} if cursor else {}
        page = await billing.json("GET", path, params={**params, **extra})
        assert len(page["items"]) <= params.get("limit", 100)
        items += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return items


async def test_a_top_up_is_posted_once_for_each_reference(billing: Service, tenant: str) -> None:
    path = f"/tenants/{tenant}/topups"
    body = {"amount_nanos": 25 * 10**9, "currency": "USD", "reference": "wire 2026/17"}
    answers = await asyncio.gather(*(billing.call("POST", path, json=body) for _ in range(5)))
    other = await billing.call("POST", path, json={**body, "amount_nanos": 1})

    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 200, 201]
    assert len({answer.json()["transfer_id"] for answer in answers}) == 1
    assert other.status_code == 409
    assert "wire 2026/17" in other.json()["error"]["message"]
    assert await billing.balance(tenant) == 25 * 10**9
    [posted] = await billing.transfers(tenant_id=tenant)
    assert sum(line["amount_nanos"] for line in posted["postings"]) == 0


async def test_usage_and_ledger_are_paged_newest_first(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    for _ in range(7):
        await gateway.publish(gateway.record(tenant))
    await billing.posted(tenant, 7)

    usage = await every(billing, "/usage", tenant_id=tenant, limit=3)
    ledger = await every(billing, "/ledger", tenant_id=tenant, limit=2)
    assert len(usage) == len(ledger) == 7
    assert [one["request_id"] for one in usage] == sorted(
        (one["request_id"] for one in usage), reverse=True
    )
    assert {one["transfer_id"] for one in usage} == {one["transfer_id"] for one in ledger}


@pytest.mark.parametrize("path", ["/usage", "/usage/buckets", "/ledger", "/leakage", "/statements"])
async def test_a_list_narrowed_to_a_tenant_that_is_none_is_not_empty_but_refused(
    billing: Service, tenant: str, path: str
) -> None:
    nobody = await billing.call("GET", path, params={"tenant_id": "nope"})
    somebody = await billing.call("GET", path, params={"tenant_id": tenant})

    assert refusal(nobody) == 404
    assert somebody.json()["items"] == []


async def test_a_list_narrowed_to_a_project_or_key_that_is_none_of_the_tenant_is_refused(
    billing: Service, tenant: str
) -> None:
    other = (await billing.json("POST", "/tenants", json={"name": f"Another of {tenant}"}))[
        "tenant_id"
    ]
    project = await billing.json("POST", f"/tenants/{other}/projects", json={"name": "web"})
    key = await billing.json("POST", f"/tenants/{other}/keys", json={"name": "k"})
    ids = {"project_id": project["project_id"], "key_id": key["key_id"]}

    async def statuses(whose: str) -> list[int]:
        buckets = {"tenant_id": whose}
        keys = f"/tenants/{whose}/keys"
        asked = [("/usage/buckets", buckets | {name: one}) for name, one in ids.items()]
        asked.append((keys, {"project_id": ids["project_id"]}))
        return [
            (await billing.call("GET", path, params=given)).status_code for path, given in asked
        ]

    assert await statuses(tenant) == [404, 404, 404]
    assert await statuses(other) == [200, 200, 200]


async def test_no_tenant_is_called_what_looks_like_anothers_name(billing: Service) -> None:
    letter = secrets.choice("aceopxy") + secrets.token_hex(4)
    imitated = {
        "name": f"\u0420\u043e\u0441\u0430 {letter}",
        "tenant_id": f"x{secrets.token_hex(4)}",
    }

    async def create(name: str, **more: str) -> int:
        answer = await billing.call("POST", "/tenants", json={"name": name, **more})
        return answer.status_code

    assert await create(**imitated) == 201
    assert await create(f"Poca {letter}") == 409
    assert await create(f"POCA {letter}") == 409
    assert await create(f"\u0445{imitated['tenant_id'][1:]}") in {409, 422}
    assert await create(f"Rosa {letter}") == 201


async def test_usage_is_filtered_by_time(billing: Service, gateway: Gateway, tenant: str) -> None:
    await gateway.publish(gateway.record(tenant))
    await billing.posted(tenant, 1)
    now = datetime.now(UTC)
    hour = timedelta(hours=1)

    async def count(**times: datetime) -> int:
        params = {name: moment.isoformat() for name, moment in times.items()}
        page = await billing.json("GET", "/usage", params={"tenant_id": tenant, **params})
        return len(page["items"])

    assert await count(since=now - hour, until=now + hour) == 1
    assert await count(since=now + hour) == 0
    assert await count(until=now - hour) == 0


async def test_new_prices_hold_for_what_is_admitted_from_then_on(
    billing: Service, gateway: Gateway, tenant: str
) -> None:
    before = await billing.json("GET", "/prices")
    current = next(
        book for book in before["items"] if book["in_force"] and book["tenant_id"] is None
    )
    doubled = {**current["classes"], "doubled": current["classes"]["chat-small"]}
    doubled["doubled"]["input_token"]["amount_nanos"] *= 2
    starts = datetime.now(UTC) + timedelta(days=1)
    await billing.json(
        "POST",
        "/prices",
        json={"classes": doubled, "effective_from": starts.isoformat(), "note": "doubled"},
    )
    late_ns = int((starts + timedelta(hours=1)).timestamp()) * 10**9
    early = gateway.record(tenant, price_class="doubled")
    late = gateway.record(tenant, price_class="doubled", admitted_unix_ns=late_ns)
    await gateway.publish(early, late)
    posted = await billing.posted(tenant, 2)

    by_id = {one["request_id"]: one for one in posted}
    assert by_id[f"req_{late.request_id.hex()}"]["amount_nanos"] == 200_000
    assert by_id[f"req_{late.request_id.hex()}"]["rated_class"] == "doubled"
    assert by_id[f"req_{early.request_id.hex()}"]["rated_class"] == "default"


NAUGHTY = ["", " ", "x" * 101, "a\u0000b", "ta\tb", "rtl\u202egnp", "\u200b", 5, None, ["a"], {}]


@pytest.mark.parametrize("name", NAUGHTY)
async def test_a_bad_name_is_refused(billing: Service, tenant: str, name: Any) -> None:
    for path in ("/tenants", f"/tenants/{tenant}/keys"):
        answer = await billing.call("POST", path, json={"name": name})

        assert refusal(answer) == 422


def refusal(answer: httpx.Response) -> int:
    """The status of an answer that is an error in the API's own shape."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code"}
    assert all(error.values())
    return answer.status_code


@pytest.mark.parametrize(
    "change",
    [
        {"amount_nanos": 0},
        {"amount_nanos": -1},
        {"amount_nanos": 10**15 + 1},
        {"amount_nanos": 2**63},
        {"amount_nanos": 10**40},
        {"amount_nanos": 1.5},
        {"amount_nanos": 1.0},
        {"amount_nanos": "100"},
        {"amount_nanos": True},
        {"amount_nanos": None},
        {"currency": "EUR"},
        {"currency": "usd"},
        {"currency": "XXX"},
        {"currency": "USDX"},
        {"currency": 840},
        {"reference": ""},
        {"reference": "x" * 201},
        {"reference": "a\u0000"},
        {"reference": "\u202e"},
        {"unknown": 1},
    ],
)
async def test_a_bad_top_up_is_refused_and_moves_nothing(
    billing: Service, tenant: str, change: Json
) -> None:
    good = {"amount_nanos": 1, "currency": "USD", "reference": "r"}
    answer = await billing.call("POST", f"/tenants/{tenant}/topups", json={**good, **change})

    assert refusal(answer) == 422
    assert await billing.balance(tenant) == 0


@pytest.mark.parametrize(
    "body",
    [
        {"name": "x", "tenant_id": "Not An Id"},
        {"name": "x", "tenant_id": "'; DROP TABLE tenants; --"},
        {"name": "x", "currency": "EUR"},
        {"name": "x", "currency": "ZZZ"},
        {"tenant_id": "a"},
        [],
        "x",
        7,
        None,
    ],
)
async def test_a_bad_tenant_is_refused(billing: Service, body: Any) -> None:
    assert refusal(await billing.call("POST", "/tenants", json=body)) == 422


@pytest.mark.parametrize(
    "change",
    [
        {"classes": {}},
        {"classes": {"chat-small": {}}},
        {"classes": {"default": {"request": {"amount_nanos": -1, "per_units": 1}}}},
        {"classes": {"default": {"request": {"amount_nanos": 10**16, "per_units": 1}}}},
        {"classes": {"default": {"request": {"amount_nanos": 1, "per_units": 3}}}},
        {"classes": {"default": {"goodwill": {"amount_nanos": 1, "per_units": 1}}}},
        {"classes": {"default": {}, "Bad Class": {}}},
        {"currency": "dollars"},
        {"currency": "XYZ"},
        {"charge_quantum_nanos": 0},
        {"charge_quantum_nanos": 10**10},
        {"note": "\u202e"},
        {"note": "x" * 501},
        {"effective_from": "2020-01-01T00:00:00Z"},
        {"effective_from": "2026-01-01T00:00:00"},
        {"effective_from": "9999-12-31T23:59:59Z"},
        {"effective_from": "soon"},
    ],
)
async def test_bad_prices_are_refused(billing: Service, change: Json) -> None:
    assert refusal(await billing.call("POST", "/prices", json={"classes": PRICES, **change})) == 422


async def test_two_price_books_cannot_begin_at_the_same_moment(billing: Service) -> None:
    begins = (datetime.now(UTC) + timedelta(days=400)).isoformat()
    body = {"classes": PRICES, "effective_from": begins}
    answers = await asyncio.gather(*(billing.call("POST", "/prices", json=body) for _ in range(3)))

    assert sorted(answer.status_code for answer in answers) == [201, 409, 409]


UNKNOWN = ["nobody", "NOBODY", "%00", "a%00b", "'; DROP TABLE tenants; --", "x" * 300, "..%2f.."]


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/tenants/{}"),
        ("GET", "/tenants/{}/balance"),
        ("GET", "/tenants/{}/keys"),
        ("POST", "/tenants/{}/keys"),
        ("POST", "/tenants/{}/topups"),
        ("DELETE", "/keys/{}"),
        ("DELETE", "/keys/key_{}"),
    ],
)
async def test_what_does_not_exist_is_not_found(
    billing: Service, method: str, path: str, name: str
) -> None:
    body = {"name": "n"}
    if path.endswith("topups"):
        body = {"amount_nanos": 1, "currency": "USD", "reference": "r"}
    options = {"json": body} if method == "POST" else {}

    assert refusal(await billing.call(method, path.format(name), **options)) == 404


@pytest.mark.parametrize(
    ("path", "statuses"),
    [
        ("/usage/req_123", [422]),
        ("/usage/not-an-id", [422]),
        (f"/usage/req_{'0' * 32}", [404]),
        ("/usage?limit=0", [422]),
        ("/usage?limit=1001", [422]),
        ("/usage?limit=x", [422]),
        ("/usage?cursor=%00", [422]),
        ("/usage?cursor=AAAA", [422]),
        ("/usage?cursor=" + "x" * 300, [422]),
        ("/usage?tenant_id=%00", [422]),
        ("/usage?tenant_id=A'--", [422]),
        ("/usage?since=yesterday", [422]),
        ("/usage?since=2026-01-01T00:00:00", [422]),
        ("/usage?since=0001-01-01T00:00:00Z", [422]),
        ("/ledger?request_id=zzz", [422]),
        ("/ledger?cursor=!!!", [422]),
        ("/tenants?cursor=%ff", [422]),
        ("/nothing", [404]),
    ],
)
async def test_a_bad_question_is_answered_clearly(
    billing: Service, path: str, statuses: list[int]
) -> None:
    assert refusal(await billing.call("GET", path)) in statuses


async def test_broken_bodies_are_refused(billing: Service) -> None:
    bodies: list[tuple[bytes, int]] = [
        (b"", 422),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b'{"name": NaN}', 422),
        (b"[" * 100_000, 400),
        (b'{"name": "' + b"x" * 2_000_000 + b'"}', 413),
    ]
    for body, status in bodies:
        headers = {"content-type": "application/json"}
        answer = await billing.call("POST", "/tenants", content=body, headers=headers)

        assert refusal(answer) == status
    assert refusal(await billing.call("PUT", "/tenants")) == 405


async def test_json_that_was_sent_as_a_form_is_told_its_content_type(billing: Service) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    answer = await billing.call("POST", "/tenants", content=b'{"name": "Acme"}', headers=form)

    assert refusal(answer) == 422
    said = answer.json()["error"]["message"]
    assert "'application/x-www-form-urlencoded'" in said
    assert "content-type: application/json" in said


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer wrong", "Basic b3A6b3A=", "Bearer ' OR 1=1 --", "\xff"],
)
async def test_every_route_refuses_whoever_is_not_the_operator(
    billing: Service, authorization: str | None
) -> None:
    given = authorization or ""
    headers = [(b"authorization", given.encode("latin-1"))] if authorization is not None else []
    document = (await billing.client.get(f"{billing.http_url}/openapi.json")).json()
    async with httpx.AsyncClient(
        base_url=billing.http_url, trust_env=False, verify=False
    ) as stranger:
        for path, operations in {
            **document["paths"],
            "/openapi.json": ["get"],
            "/x": ["get"],
        }.items():
            for method in operations:
                answer = await stranger.request(method.upper(), path, headers=headers)

                assert refusal(answer) == 401
                assert answer.headers["www-authenticate"] == 'Bearer realm="busbar"'


async def test_the_document_says_what_each_operation_does(billing: Service) -> None:
    document = (await billing.client.get(f"{billing.http_url}/openapi.json")).json()
    named = [
        f"{method} {path}"
        for path, operations in document["paths"].items()
        for method, one in operations.items()
        if one["operationId"].startswith(one["summary"].lower().replace(" ", "_") + "_")
    ]

    assert len(document["paths"]) > 30
    assert named == []


async def test_the_ops_listener_is_alive_ready_and_counts(billing: Service) -> None:
    health = await billing.client.get(f"{billing.ops_url}/healthz")
    metrics = await billing.client.get(f"{billing.ops_url}/metrics")

    assert health.status_code == 200
    assert await billing.is_ready()
    for name in ("records_posted_total", "duplicates_total", "voids_posted_total", "lag_seconds"):
        assert f"busbar_billing_{name}" in metrics.text
