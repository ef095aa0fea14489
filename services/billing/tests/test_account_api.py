"""The customers' API: a tenant sees and changes what is its own, and nothing else exists."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
import pytest
from account_parts import Account, every_operation
from billing_parts import Json, Service
from harness.polling import eventually

HTML = {"format": "html"}


async def test_a_tenant_reads_what_is_its_own(mine: Account, theirs: Account) -> None:
    for scope in ("read_usage", "administer"):
        tenant = await mine.json("GET", "/tenant", scope=scope)
        balance = await mine.json("GET", "/balance", scope=scope)
        terms = await mine.json("GET", "/terms", scope=scope)
        usage = await mine.json("GET", "/usage", scope=scope)
        one = await mine.json("GET", f"/usage/{mine.request_id}", scope=scope)
        ledger = await mine.json("GET", "/ledger", scope=scope)
        keys = await mine.json("GET", "/keys", scope=scope)
        projects = await mine.json("GET", "/projects", scope=scope)
        payments = await mine.json("GET", "/payments", scope=scope)
        statements = await mine.json("GET", "/statements", scope=scope)
        statement = await mine.json("GET", f"/statements/{mine.statement}", scope=scope)
        details = await mine.json("GET", "/billing-details", scope=scope)
        by_key = {"bucket": "minute", "group_by": "key"}
        buckets = await mine.json("GET", "/usage/buckets", params=by_key, scope=scope)

        assert tenant["tenant_id"] == balance["tenant_id"] == terms["tenant_id"] == mine.tenant_id
        assert terms["this_month"]["spent_nanos"] == 100_000
        assert [row["request_id"] for row in usage["items"]] == [mine.request_id]
        assert {**one, "lines": None} == {**usage["items"][0], "lines": None}
        assert [line["exact_nanos"] for line in one["lines"]] == ["100000", "0"]
        assert [row["reference"] for row in payments["items"]] == [mine.tenant_id]
        assert [row["number"] for row in statements["items"]] == [mine.statement]
        assert statement["tenant_id"] == details["tenant_id"] == mine.tenant_id
        assert [(row["group"], row["requests"]) for row in buckets["items"]] == [
            (mine.keys["serve"]["key_id"], 1)
        ]
        assert {row["kind"] for row in ledger["items"]} >= {"charge", "top_up"}
        assert {line["tenant_id"] for row in ledger["items"] for line in row["postings"]} == {
            mine.tenant_id
        }
        assert {row["key_id"] for row in keys["items"]} == {
            key["key_id"] for key in mine.keys.values()
        }
        assert [row["project_id"] for row in projects["items"]] == [mine.project_id]
        shown = str([tenant, balance, terms, usage, ledger, keys, projects])
        shown += str([payments, statements, statement, details, buckets])
        assert not [found for found in theirs.ids if found in shown]
        assert "r1.s1.n1" not in shown


async def test_no_route_reads_but_as_the_tenant(
    mine: Account, document: Json, admin: asyncpg.Connection
) -> None:
    """Without the database role that sees one tenant's rows, none of them has an answer."""
    reads = [one.template for one in every_operation(document) if one.method == "GET"]

    async def read(path: str) -> httpx.Response:
        params = HTML if path.endswith("/document") else {}
        return await mine.call("GET", path.format(**mine.known), params=params)

    reading = "busbar_billing_tenant FROM busbar_billing_service"
    await admin.execute(f"REVOKE {reading}")
    try:
        without = {path: await read(path) for path in reads}
    finally:
        given_back = reading.replace("FROM", "TO")
        await admin.execute(f"GRANT {given_back} WITH INHERIT FALSE, SET TRUE")
    again = {path: await read(path) for path in reads}

    assert len(reads) >= 15
    assert {path: answer.status_code for path, answer in without.items()} == dict.fromkeys(
        reads, 503
    )
    assert {path: answer.status_code for path, answer in again.items()} == dict.fromkeys(reads, 200)


async def test_statements_are_rendered_for_their_tenant(mine: Account, theirs: Account) -> None:
    begins = {"html": b"<!doctype", "pdf": b"%PDF", "csv": b"document,", "focus": b"BilledCost,"}
    for form, first in begins.items():
        path = f"/statements/{mine.statement}/document"
        answer = await mine.call("GET", path, params={"format": form}, scope="read_usage")
        refused = await theirs.call("GET", path, params={"format": form})

        assert answer.content.startswith(first)
        assert refused.status_code == 404


async def test_payments_show_what_was_entered_wrongly_and_taken_back(
    billing: Service, mine: Account
) -> None:
    body = {"amount_nanos": 700, "currency": "USD", "reference": "typed wrongly"}
    path = f"/tenants/{mine.tenant_id}"
    wrong = await billing.json("POST", f"{path}/topups", json=body)
    undo, why = f"/transfers/{wrong['transfer_id']}/corrections", {"reason": "typed wrongly"}
    await billing.json("POST", undo, json=why)
    refund = {"reason": "slow", "reference": "r"}
    await billing.json("POST", f"/usage/{mine.request_id}/refunds", json=refund)
    first = await mine.json("GET", "/payments", params={"limit": 2})
    cursor = {"cursor": first["next_cursor"]}
    rest = await mine.json("GET", "/payments", params=cursor)

    assert [(row["kind"], row["amount_nanos"]) for row in first["items"] + rest["items"]] == [
        ("correction", -700),
        ("top_up", 700),
        ("top_up", 10**9),
    ]
    assert rest["next_cursor"] is None


async def test_a_tenant_says_where_its_statements_go_but_not_who_issues_them(
    billing: Service, mine: Account
) -> None:
    entity = {"name": "Busbar Nord GmbH", "number_prefix": f"N{mine.tenant_id[-6:].upper()}"}
    path = f"/tenants/{mine.tenant_id}/billing-details"
    await billing.json("PUT", f"/legal-entities/{mine.tenant_id}", json=entity)
    await billing.json("PUT", path, json={"name": "Ours", "entity_id": mine.tenant_id})
    said = {"name": "Ácme Łódź", "address": ["Main Street 1", "Fargo"], "tax_id": "US-1"}
    kept = await mine.json("PUT", "/billing-details", json=said)
    refused = [
        await mine.call("PUT", "/billing-details", json={**said, **change})
        for change in (
            {"entity_id": "default"},
            {"name": "a\u202eb"},
            {"name": " "},
            {"address": ["a\nb"]},
            {"address": ["x"] * 7},
            {"tax_id": "\u0000"},
        )
    ]
    read_only = await mine.call("PUT", "/billing-details", json=said, scope="read_usage")

    assert kept == {**said, "tenant_id": mine.tenant_id, "entity_id": mine.tenant_id}
    assert await mine.json("GET", "/billing-details") == kept
    assert await billing.json("GET", path) == kept
    assert [answer.status_code for answer in refused] == [422] * 6
    assert read_only.status_code == 403


async def test_a_tenant_manages_its_keys_and_projects(mine: Account) -> None:
    project = await mine.json("POST", "/projects", json={"name": "batch"})
    again = await mine.call("POST", "/projects", json={"name": " BATCH "})
    path = f"/projects/{project['project_id']}"
    body = {"name": "ci", "scopes": ["serve", "read_usage"], "project_id": project["project_id"]}
    made = await mine.json("POST", "/keys", json=body)
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    key_path = f"/keys/{made['key_id']}"
    rotated = await mine.json("POST", f"{key_path}/rotate", json={"old_valid_until": until})
    found = await mine.json("GET", "/keys", params={"prefix": made["prefix"]})
    in_project = await mine.json("GET", "/keys", params={"project_id": project["project_id"]})
    in_use = await mine.call("DELETE", path)
    revoked = await mine.json("DELETE", key_path)
    archived = await mine.json("DELETE", path)
    closed = await mine.call("POST", "/keys", json=body)

    assert again.status_code == 409
    assert made["propagated"]
    assert rotated["key"] != made["key"]
    assert rotated["previous_secret"]["prefix"] == made["prefix"]
    assert [row["key_id"] for row in found["items"]] == [made["key_id"]]
    assert [row["key_id"] for row in in_project["items"]] == [made["key_id"]]
    assert in_use.status_code == 409
    assert revoked["revoked_at"]
    assert archived["archived_at"]
    assert closed.status_code == 404


async def test_an_old_secret_opens_until_it_ends_and_a_revoked_key_nothing(mine: Account) -> None:
    old = mine.keys["administer"]
    path = f"/keys/{old['key_id']}/rotate"
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    mine.keys["new"] = await mine.json("POST", path, json={"old_valid_until": until})
    with_both = [
        (await mine.call("GET", "/tenant", scope=one)).status_code for one in ("new", "administer")
    ]
    mine.keys["last"] = await mine.json("POST", path, scope="new", json={})
    after = {
        one: (await mine.call("GET", "/tenant", scope=one)).status_code
        for one in ("administer", "new", "last")
    }
    await mine.json("DELETE", f"/keys/{old['key_id']}", scope="last")
    gone = await mine.call("GET", "/tenant", scope="last")

    assert with_both == [200, 200]
    assert after == {"administer": 401, "new": 401, "last": 200}
    assert gone.status_code == 401


async def test_a_key_gives_no_more_deployments_than_it_has(mine: Account) -> None:
    async def made(scope: str, **wanted: Any) -> httpx.Response:
        body = {"name": "k", "scopes": ["administer", "serve"], **wanted}
        return await mine.call("POST", "/keys", scope, json=body)

    mine.keys["limited"] = (await made("administer", deployments=["echo", "chat"])).json()
    refusals = [
        await made("limited"),
        await made("limited", deployments=["echo", "other"]),
        *[
            await mine.call("POST", f"/keys/{mine.keys[one]['key_id']}/rotate", "limited", json={})
            for one in ("administer", "serve")
        ],
    ]
    mine.keys["narrow"] = (await made("limited", deployments=["echo"])).json()
    paths = {one: f"/keys/{mine.keys[one]['key_id']}/rotate" for one in ("limited", "narrow")}
    widened = await mine.call("POST", paths["limited"], "narrow", json={})
    rotated = [await mine.call("POST", paths[one], "limited", json={}) for one in reversed(paths)]
    opens = await mine.call("GET", "/tenant", "administer")

    for one in [*refusals, widened]:
        assert (one.status_code, one.json()["error"]["code"]) == (403, "forbidden")
    assert mine.keys["narrow"]["deployments"] == ["echo"]
    assert [one.status_code for one in rotated] == [200, 200]
    assert opens.status_code == 200  # the refused rotation left its secret as it was


async def test_a_key_ends_no_key_that_may_do_more(mine: Account) -> None:
    async def made(name: str, *deployments: str) -> str:
        body = {"name": name, "scopes": ["administer"], "deployments": list(deployments)}
        mine.keys[name] = await mine.json("POST", "/keys", json=body)
        return mine.keys[name]["key_id"]

    await made("limited", "chat", "echo")
    other, narrow = await made("other", "echo", "images"), await made("narrow", "echo")
    refused = [
        await mine.call("DELETE", f"/keys/{key_id}", "limited")
        for key_id in (mine.keys["serve"]["key_id"], other)
    ]
    ended = [
        await mine.call("DELETE", f"/keys/{key_id}", by)
        for by, key_id in (("limited", narrow), ("administer", other))
    ]
    listed = (await mine.json("GET", "/keys"))["items"]

    assert [one.status_code for one in refused] == [403, 403]
    assert "may be used for all of them" in refused[0].text
    assert "may be used for 'images'" in refused[1].text
    assert [one.status_code for one in ended] == [200, 200]
    assert {one["key_id"] for one in listed if one["revoked_at"]} == {other, narrow}


async def test_when_a_key_was_last_used_is_known_to_the_minute(mine: Account) -> None:
    key_id = mine.keys["serve"]["key_id"]

    async def last_used() -> str | None:
        return (await mine.json("GET", f"/keys/{key_id}"))["last_used_at"]

    used = await eventually(last_used, within_s=30, what="the use is written")
    assert used is not None
    moment = datetime.fromisoformat(used)
    created = datetime.fromisoformat((await mine.json("GET", f"/keys/{key_id}"))["created_at"])
    assert moment == max(moment.replace(second=0, microsecond=0), created)
    assert datetime.now(UTC) - moment < timedelta(minutes=3)


async def test_a_key_that_asks_for_the_account_is_in_use(mine: Account) -> None:
    async def used() -> dict[str, Json] | None:
        listed = (await mine.json("GET", "/keys"))["items"]
        await mine.call("GET", "/balance", "read_usage")
        found = {one["name"]: one for one in listed if one["last_used_at"]}
        return found if {"administer", "read_usage"} <= found.keys() else None

    found = await eventually(used, within_s=30, what="the uses are written")
    assert found is not None
    moments = [(one["created_at"], one["last_used_at"]) for one in found.values()]
    assert all(
        datetime.fromisoformat(created) <= datetime.fromisoformat(used) for created, used in moments
    )


async def test_a_key_that_is_refused_was_not_used(mine: Account) -> None:
    refused = await mine.call("POST", "/projects", "read_usage", json={"name": "mine"})

    async def administered() -> Json | None:
        listed = (await mine.json("GET", "/keys"))["items"]
        by_name = {one["name"]: one for one in listed}
        return by_name if by_name["administer"]["last_used_at"] else None

    by_name = await eventually(administered, within_s=30, what="the uses are written")
    assert by_name is not None
    assert refused.status_code == 403
    assert by_name["read_usage"]["last_used_at"] is None


def routes(document: Json) -> list[tuple[str, str]]:
    return [(one.method, one.template) for one in every_operation(document)]


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer bb_x",
        "Basic b3A6b3A=",
        "Bearer ' OR 1=1 --",
        "Bearer bb_" + "A" * 43,
        "\xff",
    ],
)
async def test_every_route_refuses_whoever_has_no_key(
    mine: Account, document: Json, authorization: str | None
) -> None:
    given = [(b"authorization", authorization.encode("latin-1"))] if authorization else []
    async with httpx.AsyncClient(
        base_url=f"{mine.url}/account/v1", trust_env=False, verify=False
    ) as stranger:
        for method, path in [*routes(document), ("GET", "/nothing")]:
            answer = await stranger.request(method, path, headers=given)

            assert answer.status_code == 401, (method, path)
            assert answer.json()["error"]["code"] == "unauthorized"


async def test_scopes_open_what_they_say(mine: Account, document: Json) -> None:
    for method, path in routes(document):
        concrete = re.sub(r"{.*?}", "x", path)
        serve = await mine.call(method, concrete, scope="serve")
        reads = await mine.call(method, concrete, scope="read_usage")

        assert serve.status_code == 403, (method, path)
        assert (reads.status_code == 403) == (method != "GET"), (method, path)
        assert serve.json()["error"]["type"] == "permission_error"


NAUGHTY = ["'; DROP TABLE api_keys; --", "\u202eevil", "a\u0000b", "x" * 101, "", " ", 7, None, {}]


@pytest.mark.parametrize("value", NAUGHTY)
async def test_bad_input_is_refused_or_taken_as_text(mine: Account, value: Any) -> None:
    harmless = isinstance(value, str) and value.startswith("'")
    key = await mine.call("POST", "/keys", json={"name": value})
    project = await mine.call("POST", "/projects", json={"name": value})
    in_project = await mine.call("POST", "/keys", json={"name": "n", "project_id": value or "x"})
    found = await mine.call("GET", "/keys", params={"prefix": str(value) or "x"})

    assert key.status_code == project.status_code == (201 if harmless else 422)
    assert in_project.status_code in {404, 422}
    assert found.status_code in {200, 422}
    if found.status_code == 200:
        assert found.json()["items"] == []
