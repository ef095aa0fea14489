"""What `busbar` shows of a request that was served, and what operators do about it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import openai
import pytest
import yaml
from busbar_cli.main import run
from busbar_runtime.platform import Platform
from harness.operator import Operator
from harness.polling import says

NODE, SITE = "r1/s1/n1", "r1/s1"
SIMPLE = Path(__file__).parents[2] / "deploy/demo/models/simple"


@dataclass(frozen=True)
class Request:
    """One that was served, traced and charged; its tenant is this test's own."""

    request_id: str
    trace_id: str
    tenant: str
    project: str


Busbar = Callable[..., str]


@pytest.fixture
def busbar(
    platform: Platform,
    operator: Operator,  # waits until the platform is whole
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Busbar:
    """A command that succeeds; what it printed."""
    monkeypatch.setenv("BUSBAR_ENDPOINTS", str(platform.home.endpoints_file))

    def carried_out(*arguments: str) -> str:
        capsys.readouterr()
        status = run(arguments)
        said = capsys.readouterr()
        assert status == 0, f"busbar {' '.join(arguments)}: {status} {said.err}"
        return said.out

    return carried_out


def as_json(busbar: Busbar, *arguments: str) -> dict[str, Any]:
    return json.loads(busbar(*arguments, "--json"))


@pytest.fixture
def request_(platform: Platform, busbar: Busbar) -> Request:
    tenant = f"cli-{secrets.token_hex(4)}"
    busbar("tenant", "create", tenant.title(), "--tenant-id", tenant)
    busbar("tenant", "topup", tenant, "1", "--reference", "first")
    project = as_json(busbar, "project", "create", tenant, "shop")["project_id"]
    key = as_json(busbar, "key", "create", tenant, "--project", project)["key"]
    base_url = platform.endpoints["http"] + "/v1"
    trace_id = secrets.token_hex(16)
    # The key may take a second to be known; the SDK does not try a 401 again.
    with openai.OpenAI(base_url=base_url, api_key=key, max_retries=0) as client:

        def models() -> str:
            try:
                return " ".join(one.id for one in client.models.list())
            except openai.AuthenticationError:
                return ""

        assert says(models, "tiny-lm")
        raw = client.chat.completions.with_raw_response.create(
            model="tiny-lm",
            messages=[{"role": "user", "content": "Where does the money live?"}],
            max_tokens=12,
            extra_headers={"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"},
        )
    request_id = raw.headers["x-request-id"]
    assert says(lambda: busbar("usage", "--tenant", tenant), request_id)
    return Request(request_id, trace_id, tenant, project)


def test_a_served_request_is_found_in_usage_ledger_and_trace(
    busbar: Busbar, request_: Request
) -> None:
    request_id, tenant = request_.request_id, request_.tenant
    usage = as_json(busbar, "usage", "--tenant", tenant)["items"]
    explained = as_json(busbar, "usage", "explain", request_id)
    [transfer] = as_json(busbar, "ledger", "--request", request_id)["items"]
    added_up = as_json(busbar, "usage", "--tenant", tenant, "--by", "project")["items"]

    [record] = usage
    assert record["request_id"] == explained["request_id"] == request_id
    cost = sum(int(line["amount_nanos"]) for line in explained["lines"] if line["quantity"])
    assert explained["amount_nanos"] == record["amount_nanos"] > 0
    assert cost > 0
    assert sum(posting["amount_nanos"] for posting in transfer["postings"]) == 0
    assert [one["amount_nanos"] for one in added_up] == [record["amount_nanos"]]
    assert f"by openai.chat for {tenant}" in busbar("usage", "explain", request_id)
    assert "output_token" in busbar("usage", request_id)
    assert "revenue" in busbar("ledger", "--request", request_id)
    left = 10**9 - record["amount_nanos"]
    assert as_json(busbar, "balance", tenant)["balance_nanos"] == left

    def drawn() -> str:
        return busbar("trace", request_id) if tenant in busbar("trace") else ""

    assert says(drawn, "ledger post", within_s=20)
    assert f"trace {request_.trace_id}" in busbar("trace", request_.trace_id)
    assert as_json(busbar, "trace", request_id)["traceID"] == request_.trace_id
    assert request_id in {one["request_id"] for one in as_json(busbar, "trace")["items"]}


def test_money_is_given_back_and_a_gift_withdrawn(busbar: Busbar, request_: Request) -> None:
    tenant, charged = request_.tenant, ("refund", request_.request_id)
    [record] = as_json(busbar, "usage", "--tenant", tenant)["items"]
    part = as_json(busbar, *charged, "0.000001", "--reason", "slow", "--reference", "t1")
    rest = busbar(*charged, "--reason", "slow")
    give = ("credit", "give", tenant, "1", "--expires", "2090-01-01T00:00:00Z", "--reference")
    gifts = [as_json(busbar, *give, ticket)["transfer_id"] for ticket in ("t2", "t3", "t3")]
    credits_ = as_json(busbar, "credit", "list", tenant)["items"]
    taken = busbar("credit", "withdraw", credits_[0]["credit_id"], "--reason", "by mistake")
    withdrawn = as_json(
        busbar, "credit", "withdraw", credits_[1]["credit_id"], "--reason", "by mistake"
    )

    assert {one["amount_nanos"] for one in part["postings"]} == {1000, -1000}
    assert f"refunded ${(record['amount_nanos'] - 1000) / 1e9:.10f}".rstrip("0") in rest
    assert rest.endswith(f"to {tenant}\n")
    assert len({*gifts}) == 2
    assert taken.startswith("took $")
    assert withdrawn["taken_back_nanos"] + withdrawn["unspent_nanos"] == 10**9
    assert busbar("credit", "list", tenant).count("withdrawn") == 2


def test_projects_and_plans_are_shown(busbar: Busbar, request_: Request) -> None:
    plan = f"plan-{secrets.token_hex(4)}"
    busbar("plan", "set", plan, "--requests-per-minute", "60")
    projects = as_json(busbar, "project", "list", request_.tenant)["items"]

    assert [one["project_id"] for one in projects] == [request_.project]
    assert request_.project in busbar("project", "list", request_.tenant)
    assert "shop" in busbar("project", "show", request_.project)
    assert as_json(busbar, "project", "show", request_.project)["name"] == "shop"
    assert "requests/min" in busbar("plan", "show", plan)
    assert as_json(busbar, "plan", "show", plan)["limits"]["requests_per_minute"] == 60
    assert plan in busbar("plan", "list")
    assert busbar("plan", "delete", plan) == f"{plan} deleted\n"


def test_a_month_that_is_over_is_closed_and_its_statement_shown(
    busbar: Busbar, platform: Platform
) -> None:
    tenant = f"cli-{secrets.token_hex(4)}"
    busbar("tenant", "create", tenant.title(), "--tenant-id", tenant)
    month = asyncio.run(a_month_older(platform, tenant))
    line = busbar("statement", "close", tenant, month)
    again = as_json(busbar, "statement", "close", tenant, month)
    number = again["number"]

    assert line == f"{number}  {month}  closing balance $0.00\n"
    assert number in busbar("statement", "list", "--tenant", tenant)
    listed = as_json(busbar, "statement", "list", "--tenant", tenant)["items"]
    assert [one["number"] for one in listed] == [number]
    assert "closing balance" in busbar("statement", "show", number)
    assert as_json(busbar, "statement", "show", number)["tenant_id"] == tenant
    assert number in busbar("statement", "show", number, "--document", "html")


async def a_month_older(platform: Platform, tenant: str) -> str:
    """Have a tenant since last month, as no command can; that month."""
    database = await asyncpg.connect(platform.endpoints["postgres"])
    try:
        await database.execute("SET session_replication_role = replica")
        since = await database.fetchval(
            "UPDATE tenants SET created_at = date_trunc('month', created_at AT TIME ZONE 'UTC') "
            "AT TIME ZONE 'UTC' - interval '1 day' WHERE tenant_id = $1 RETURNING created_at",
            tenant,
        )
    finally:
        await database.close()
    return f"{since:%Y-%m}"


def test_the_fleet_is_shown_and_a_node_and_a_site_cordoned_and_used_again(busbar: Busbar) -> None:
    fleet = as_json(busbar, "fleet")
    shown = {
        NODE: busbar("fleet"),
        f"{NODE} ": busbar("node", "list"),
        "tiny-lm": busbar("node", "show", NODE),
        f"{SITE} ": busbar("site", "show", SITE),
    }
    try:
        cordoned = busbar("node", "cordon", NODE, "--reason", "a look inside")
        told = as_json(busbar, "node", "show", NODE)["order"]
        why = busbar("fleet")
        site = as_json(busbar, "site", "cordon", SITE)
    finally:
        resumed = [busbar("site", "resume", SITE), busbar("node", "resume", NODE)]

    assert [one["deployment"] for one in fleet["deployments"]].count("tiny-lm") == 1
    assert [text for text, output in shown.items() if text not in output] == []
    assert "a look inside" in cordoned
    assert (told["order"], told["reason"]) == ("cordon", "a look inside")
    assert "cordon: a look inside" in why
    assert site["order"]["order"] == "cordon"
    assert ["cordon" in output for output in resumed] == [False, False]
    assert as_json(busbar, "node", "show", NODE)["order"]["order"] == "serve"
    assert as_json(busbar, "site", "show", SITE)["order"]["order"] == "serve"


def test_a_deployment_goes_back_to_the_bundle_before(busbar: Busbar, tmp_path: Path) -> None:
    name = f"cli-{secrets.token_hex(4)}"
    file, digests = tmp_path / "deployments.yaml", list[str]()
    try:
        for version in ("1", "2"):
            model = tmp_path / version
            model.mkdir()
            pushed = push(busbar, model, name, version)
            file.write_text(yaml.safe_dump([{"name": name, "bundle": pushed, "replicas": 0}]))
            busbar("deploy", str(file))
            digests.append(pushed)
        back = as_json(busbar, "deploy", "rollback", name)
        forth = busbar("deploy", "rollback", name, "--at-once")
    finally:
        busbar("deploy", "rm", name)

    assert (back["bundle"], back["previous_bundle"]) == (digests[0], digests[1])
    assert digests[1].removeprefix("sha256:")[:12] in forth


def push(busbar: Busbar, model: Path, name: str, version: str) -> str:
    """A version of the demo's smallest model under another name; its digest."""
    (model / "1").mkdir()
    (model / "1" / "model.py").write_bytes((SIMPLE / "1" / "model.py").read_bytes())
    manifest = yaml.safe_load((SIMPLE / "busbar.yaml").read_text())
    (model / "busbar.yaml").write_text(
        yaml.safe_dump({**manifest, "name": name, "version": version})
    )
    config = (SIMPLE / "config.pbtxt").read_text()
    (model / "config.pbtxt").write_text(config.replace('name: "simple"', f'name: "{name}"'))
    return str(as_json(busbar, "model", "push", str(model), "--approve")["digest"])
