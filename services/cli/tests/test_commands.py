"""Every command against the real admin APIs: answers, exit statuses, and what goes where."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from harness.command import Busbar
from harness.polling import says

GIVE = ["credit", "give", "--expires", "2090-01-01T00:00:00Z", "--reference", "r"]


def test_a_tenant_from_creation_to_its_revoked_key(busbar: Busbar) -> None:
    tenant = busbar("tenant", "create", "Acme", "--tenant-id", "acme", "--json").json
    paid = busbar("tenant", "topup", "Acme", "2.5", "--reference", "r1", "--json").json
    again = busbar("tenant", "topup", "acme", "2.5", "--reference", "r1", "--json").json
    held = busbar("balance", "acme", "--json").json
    key = busbar("key", "create", "acme", "--name", "ci", "--deployment", "m", "--json").json
    listed = busbar("key", "list", "acme", "--json").json["items"]
    revoked = busbar("key", "revoke", key["key_id"], "--json").json

    assert tenant["tenant_id"] == "acme"
    assert paid["transfer_id"] == again["transfer_id"]
    assert held["balance_nanos"] == 2_500_000_000
    assert key["key"].startswith("bb_")
    assert [(one["name"], one["deployments"]) for one in listed] == [("ci", ["m"])]
    assert revoked["revoked_at"]
    assert busbar("balance", "Acme").out == "$2.50\n"
    assert "revoked" in busbar("key", "list", "acme").out
    assert "acme" in busbar("tenant", "list").out
    assert "$2.50" in busbar("tenant", "show", "acme").out
    assert "payments_clearing" in busbar("ledger", "--tenant", "acme").out
    assert busbar("usage", "--tenant", "acme", "--json").json == {"items": []}


def test_a_list_that_stops_says_so(busbar: Busbar) -> None:
    busbar("tenant", "create", "Listed Ltd", "--tenant-id", "listed")
    for number in range(3):
        busbar("key", "create", "listed", "--name", f"key-{number}")
        busbar("tenant", "topup", "listed", "1", "--reference", f"r{number}")
    two, all_of_them = (
        busbar("key", "list", "listed", "--limit", "2"),
        busbar("key", "list", "listed"),
    )
    as_json = busbar("ledger", "--tenant", "listed", "--limit", "2", "--json")
    exact = busbar("ledger", "--tenant", "listed", "--limit", "3")

    assert "key-1" in two.out
    assert "key-2" not in two.out
    assert two.err == "there are more than these 2: say --limit 20\n"
    assert ("key-2" in all_of_them.out, all_of_them.err, exact.err) == (True, "", "")
    assert len(as_json.json["items"]) == 2
    assert as_json.err == two.err


def test_credit_prices_and_a_corrected_top_up(busbar: Busbar, tmp_path: Path) -> None:
    busbar("tenant", "create", "Priced", "--tenant-id", "priced")
    wrong = busbar("tenant", "topup", "priced", "5", "--reference", "wire", "--json").json
    given = ("credit", "give", "priced", "1.25", "--expires", "2090-01-01T00:00:00Z")
    gift = busbar(*given, "--reference", "welcome").out
    again = busbar(*given, "--reference", "welcome").out
    corrected = busbar("correct", wrong["transfer_id"], "--reason", "typo", "--json").json
    file = tmp_path / "prices.yaml"
    file.write_text(
        "classes:\n"
        "  default: {request: {amount_nanos: 7}}\n"
        "  chat-small:\n"
        "    input_token: {amount_nanos: 100, per_units: 1000000, free_units: 1000,\n"
        "                  tiers: [{above_units: 5000, amount_nanos: 50}]}\n"
    )
    book = busbar("price", "publish", str(file), "--tenant", "priced", "--note", "trial").out
    listed = busbar("price", "list", "--tenant", "priced", "--json").json["items"]
    shown = busbar("price", "show", str(listed[0]["version"])).out
    ended = busbar("price", "end", "--tenant", "priced")
    twice = busbar("price", "end", "--tenant", "priced")
    held = busbar("price", "list", "--tenant", "priced", "--json").json["items"]
    energy = busbar("price", "energy", "r1/s1", "0.12").out

    assert ["nothing changed" in said for said in (gift, again)] == [False, True]
    assert "$1.25" in busbar("credit", "list", "priced").out
    assert corrected["kind"] == "correction"
    assert busbar("balance", "priced").out == "$1.25\n"
    assert "for priced" in book
    assert "no class embed-small, tensor-small: charged by its class default" in book
    assert "a kWh at r1/s1 costs $0.12" in energy
    assert "$0.12" in busbar("price", "energy", "r1/s1").out
    assert "$0.12" in busbar("price", "energy", "r1.s1").out
    assert busbar("price", "energy", "r9/s9", "--json").json == {"items": []}
    assert [one["tenant_id"] for one in listed] == ["priced"]
    assert ended.out.startswith("the prices of priced end at ")
    assert ended.out.endswith(" holds, which is everybody's\n")
    assert "no prices of its own" in twice.err
    assert [one["effective_until"] is None for one in held] == [False, True]
    for said in (shown, book):  # a tier's amount buys as many units as the component's
        prices = [line.split() for line in said.splitlines() if "input_token" in line]
        assert [row[2] for row in prices] == ["0", "1,000", "5,000"]
        assert [row[4] for row in prices] == ["1,000,000"] * 3


def test_projects_keys_and_plans(busbar: Busbar) -> None:
    busbar("tenant", "create", "Plans Ltd", "--tenant-id", "plans")
    project = busbar("project", "create", "Plans Ltd", "web", "--json").json
    scopes = ["--scope", "serve", "--scope", "read_usage", "--project", project["project_id"]]
    key = busbar("key", "create", "plans", "--name", "ci", *scopes, "--json").json
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    rotated = busbar("key", "rotate", key["key_id"], "--old-valid-until", until, "--json").json
    found = busbar("key", "find", key["key"], "--json").json["items"]
    one = busbar("key", "show", key["key_id"]).out
    held = busbar("project", "archive", project["project_id"])
    limits = ["--requests-per-minute", "60", "--budget", "12.5", "--band", "batch"]
    plan = busbar("plan", "set", "small", *limits, "--json").json
    terms = busbar("tenant", "plan", "plans", "small", "--in-flight", "4", "--json").json
    used = busbar("plan", "delete", "small")
    suspended = busbar("tenant", "suspend", "plans", "--reason", "unpaid", "--json").json
    shown = busbar("tenant", "show", "plans").out
    resumed = busbar("tenant", "resume", "plans", "--json").json
    both = busbar("tenant", "plan", "plans", "small", "--none")
    looked = busbar("tenant", "plan", "plans")
    raised = busbar("plan", "set", "small", "--budget", "13")
    taken = busbar("tenant", "plan", "plans", "--none")

    assert (both.status, "give no plan" in both.err) == (2, True)
    assert ["in", "flight", "4"] in [line.split() for line in looked.out.splitlines()]
    assert ["requests/min", "none", "60"] in [line.split() for line in raised.out.splitlines()]
    assert ["in", "flight", "none", "4"] in [line.split() for line in taken.out.splitlines()]
    assert rotated["key_id"] == key["key_id"]
    assert rotated["key"] != key["key"]
    assert [one["key_id"] for one in found] == [key["key_id"]]
    assert found[0]["scopes"] == ["serve", "read_usage"]
    assert f"{key['prefix']} until" in one
    assert "open" in busbar("project", "show", project["project_id"]).out
    assert found[0]["project_id"] == project["project_id"]
    assert (held.status, used.status) == (1, 1)
    assert "revoke them first" in held.err
    assert plan["limits"]["monthly_budget_nanos"] == 12_500_000_000
    assert (terms["limits"]["max_in_flight"], terms["limits"]["band"]) == (4, "batch")
    assert (suspended["suspended_reason"], resumed["suspended_reason"]) == ("unpaid", "")
    assert "$12.50 hard" in shown
    assert busbar("plan", "delete", "small", "--json").json == {"deleted": "small"}
    assert "none" in busbar("plan", "list").out


def test_who_issues_statements_and_to_whom(busbar: Busbar) -> None:
    busbar("tenant", "create", "Invoiced", "--tenant-id", "invoiced")
    tax = ("--tax", "VAT", "--tax-percent", "7.7")
    issuer = ("--name", "Nord GmbH", "--number-prefix", "NORD", "--address", "Hafen 1")
    made = busbar("entity", "set", "nord", *issuer, *tax, "--json").json
    moved = busbar("entity", "set", "nord", "--name", "N", "--number-prefix", "SUED")
    before = busbar("tenant", "details", "invoiced", "--json").json
    to = ("--address", "Main St 1", "--address", "Fargo", "--entity", "nord")
    after = busbar("tenant", "details", "Invoiced", *to, "--json").json

    assert made["tax"] == {"name": "VAT", "ppm": 77_000, "note": ""}
    assert moved.status == 1
    assert (before["name"], before["entity_id"]) == ("Invoiced", "default")
    assert after == {**before, "address": ["Main St 1", "Fargo"], "entity_id": "nord"}
    assert "VAT 7.7 %" in busbar("entity", "list").out
    assert "Hafen 1" in busbar("entity", "show", "nord").out
    assert "Fargo" in busbar("tenant", "details", "invoiced").out
    assert busbar("entity", "show", "nobody").status == 3
    assert busbar("entity", "set", "nord", *issuer, "--tax-percent", "a lot").status == 2


def test_usage_is_added_up_and_payments_are_told(busbar: Busbar) -> None:
    busbar("tenant", "create", "Counted", "--tenant-id", "counted")
    pages = ("--success-url", "https://a.example/", "--cancel-url", "https://a.example/")

    assert busbar("usage", "--tenant", "counted", "--bucket", "hour", "--json").json == {
        "items": []
    }
    assert "no usage" in busbar("usage", "--tenant", "counted", "--by", "model").out
    assert busbar("usage", "--by", "model").status == 2
    assert busbar("usage", "--tenant", "counted", "--bucket", "week").status == 2
    assert busbar("payment", "events", "--json").json == {"items": []}
    assert "BUSBAR_STRIPE_API_KEY" in busbar("payment", "checkout", "counted", "5", *pages).err


def test_a_tenants_webhooks_and_when_its_balance_is_low(busbar: Busbar) -> None:
    assert busbar("tenant", "create", "hooked").status == 0
    url = "https://hooks.invalid/in"
    made = busbar("webhook", "create", "hooked", url, "--event", "balance.low", "--json").json
    endpoint = made["endpoint_id"]
    listed = busbar("webhook", "list", "hooked")
    changed = busbar("webhook", "set", "hooked", endpoint, "--event", "all", "--json").json
    rotated = busbar("webhook", "rotate", "hooked", endpoint)
    pinged = busbar("webhook", "ping", "hooked", endpoint, "--json").json
    sent = busbar("webhook", "deliveries", "hooked", endpoint, "--json").json["items"]
    again = busbar("webhook", "redeliver", "hooked", endpoint, pinged["delivery_id"])
    disabled = busbar("webhook", "set", "hooked", endpoint, "--no-enabled")
    low = busbar("tenant", "low-balance", "hooked", "2.5")
    default = busbar("tenant", "low-balance", "hooked", "default")
    inside = busbar("webhook", "create", "hooked", "https://169.254.169.254/")
    nowhere = busbar("webhook", "ping", "hooked", "key_1")
    deleted = busbar("webhook", "delete", "hooked", endpoint)

    assert made["secret"].startswith("whsec_")
    assert made["secret"] not in listed.out
    assert url in listed.out
    assert (changed["url"], changed["event_types"]) == (url, [])
    assert rotated.out.startswith("whsec_")
    assert rotated.out.strip() != made["secret"]
    assert [one["delivery_id"] for one in sent] == [pinged["delivery_id"]]
    assert again.status == 0
    assert "disabled by hand" in disabled.out
    assert low.out == "told below $2.50\n"
    assert default.out == "told below $5.00 (default)\n"
    assert (inside.status, nowhere.status, deleted.status) == (2, 2, 0)
    assert "not a public address" in inside.err
    assert busbar("webhook", "list", "hooked", "--json").json == {"items": []}


def test_a_model_is_pushed_once_and_deployed(busbar: Busbar, model: Path, tmp_path: Path) -> None:
    unapproved = busbar("model", "push", str(model))
    pushed = busbar("model", "push", str(model), "--approve", "--json").json
    again = busbar("model", "push", str(model), "--approve", "--json").json
    file = tmp_path / "d.yaml"
    file.write_text("- {name: one, path: small}\n- {name: none, bundle: small, replicas: 0}\n")
    deployed = busbar("deploy", str(file), "--approve", "--json")
    status = busbar("deploy", "status", "one")

    assert "push it with --approve" in unapproved.err.replace("\n", " ")
    assert pushed == again
    # There is no node: it is declared, and it is said at once that it can run nowhere.
    assert deployed.status == 1
    assert [one["status"] for one in deployed.json["items"]] == ["unplaceable", "stopped"]
    assert "one: no node in the fleet" in deployed.err
    assert (status.status, "unplaced" in status.out) == (0, True)
    assert "small" in busbar("model", "list").out
    assert busbar("deploy", "explain", "one", "--json").json["short"] == 1
    assert "can never be placed: no node in the fleet" in busbar("deploy", "explain", "one").out
    scaled = busbar("deploy", "scale", "one", "2", "--max-replicas", "4", "--json")
    assert (scaled.json["replicas"], scaled.json["max_replicas"]) == (2, 4)
    assert (scaled.status, scaled.err) == (1, deployed.err)
    # Without a place to grow to: with one, what demand asked for a second ago cannot fit either.
    stopped = busbar("deploy", "scale", "one", "0", "--max-replicas", "0")
    assert (stopped.status, stopped.err) == (0, "")
    busbar("deploy", "scale", "one", "2", "--max-replicas", "4")
    assert says(lambda: busbar("deploy", "status", "one").out, "asks for 2 (2 to 4 are allowed): ")
    assert busbar("deploy", "rollback", "one").err == (
        "busbar: one has had no other bundle to go back to\n"
    )
    assert busbar("deploy", "rm", "one", "--json").json == {"withdrawn": "one"}
    assert busbar("deploy", "rm", "none").status == 0
    assert busbar("deploy", "list", "--json").json == {"items": []}


def test_going_back_to_what_can_never_fit_fails_with_the_reason(
    busbar: Busbar, model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("- {name: one, path: small}\n")
    first = busbar("deploy", str(file), "--approve", "--json").json["items"][0]["bundle"]
    manifest = model / "busbar.yaml"
    manifest.write_text(manifest.read_text().replace('version: "1"', 'version: "2"'))
    busbar("deploy", str(file), "--approve")
    back = busbar("deploy", "rollback", "one", "--json")
    busbar("deploy", "rm", "one")

    assert back.json["bundle"] == first
    assert (back.status, back.err) == (1, "busbar: one: no node in the fleet\n")


def test_a_site_is_described_and_cordoned(busbar: Busbar) -> None:
    busbar("site", "set", "r9/s9", "--power-cap-kw", "60", "--energy-per-kwh", "0.08", "--new")
    fed = busbar("site", "set", "r9/s9", "--feeder", "north", "--json").json
    told = busbar("site", "cordon", "r9/s9", "--reason", "storm", "--json").json
    drained = busbar("site", "drain", "r9/s9", "--grace", "5", "--wait")
    busbar("site", "resume", "r9/s9")
    lifted = busbar("site", "set", "r9/s9", "--power-cap-kw", "none", "--json").json
    alone = busbar("site", "set", "r9/s9", "--feeder", "none", "--json").json

    assert (fed["power_cap_w"], fed["energy_nanos_per_kwh"]) == (60_000, 80_000_000)
    assert (told["feeder"], told["order"]["reason"]) == ("north", "storm")
    assert drained.out == "drained; it held nothing\n"
    assert (lifted["order"]["order"], lifted["power_cap_w"]) == ("serve", None)
    assert (lifted["feeder"], alone["feeder"]) == ("north", "")
    assert "$0.08" in busbar("site", "list").out
    assert busbar("node", "list").out == "no nodes have reported\n"


def test_a_deployment_is_open_to_tenants_by_name_or_id_and_to_no_unknown_one(
    busbar: Busbar, model: Path, tmp_path: Path
) -> None:
    made = busbar("tenant", "create", "Named One", "--json").json["tenant_id"]
    file = tmp_path / "d.yaml"
    file.write_text("- {name: open, path: small, replicas: 0, tenants: [Named One]}\n")
    busbar("deploy", str(file), "--approve")
    by_name = busbar("deploy", "status", "open", "--json").json["tenants"]
    file.write_text(file.read_text().replace("Named One", made))
    busbar("deploy", str(file), "--approve")
    by_id = busbar("deploy", "status", "open", "--json").json["tenants"]
    file.write_text(file.read_text().replace(made, "nobody"))
    refused = busbar("deploy", str(file), "--approve")
    after = busbar("deploy", "status", "open", "--json").json["tenants"]
    busbar("deploy", "rm", "open")

    assert by_name == by_id == after == [made]
    assert refused.status == 2
    assert "no tenant is called 'nobody'" in refused.err.replace("\n", " ")


def test_of_a_file_of_which_some_is_refused_nothing_is_declared(
    busbar: Busbar, model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "d.yaml"
    file.write_text(
        "- {name: good, path: small}\n- {name: unknown, bundle: never-pushed}\n"
        "- {name: contra, path: small, regions: [r1], pins: [r2/s1]}\n"
        "- {name: dotted, path: small, regions: [r1], pins: [r2.s1.n1]}\n"
    )
    refused = busbar("deploy", str(file), "--approve")

    assert refused.status == 1
    assert refused.err == (
        "busbar: unknown: no bundle 'never-pushed' has been pushed; push it first: busbar model "
        "push DIR\ncontra: pinned to r2, but allowed in r1 only\n"
        "dotted: pinned to r2, but allowed in r1 only\nNothing was declared.\n"
    )
    assert busbar("deploy", "list", "--json").json == {"items": []}


def test_a_key_for_what_is_not_declared_is_made_with_a_warning(busbar: Busbar) -> None:
    busbar("tenant", "create", "Early", "--tenant-id", "early")
    made = busbar("key", "create", "early", "--deployment", "to-come", "--json")

    assert made.status == 0
    assert made.json["deployments"] == made.json["undeclared_deployments"] == ["to-come"]
    assert "not declared now: to-come" in made.err.replace("\n", " ")


def test_waiting_ends_when_there_is_no_hope(busbar: Busbar, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "d.yaml"
    file.write_text("- {name: waits, path: small}\n")
    waited = busbar("deploy", str(file), "--approve", "--wait", "--timeout", "0.5", "--json")
    busbar("deploy", "rm", "waits")

    assert waited.status == 4
    assert waited.out == ""
    assert "not ready after 0.5 s" in waited.err


def test_the_fleet_traces_and_the_bus(busbar: Busbar) -> None:
    assert busbar("fleet", "--json").json["bus"]["connected"]
    assert "no nodes have reported" in busbar("fleet").out
    assert busbar("trace", "--json").json["items"] == []
    assert busbar("bus", "verify", "--json").json["right"]
    assert busbar("bus", "apply").status == 0


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["deploy", "status", "nope"], 3, "no deployment is called 'nope'"),
        (["deploy", "rm", "nope"], 3, "no deployment"),
        (["deploy", "explain", "nope"], 3, "no deployment"),
        (["node", "drain", "r1/s1/nope"], 3, "no node is called r1/s1/nope"),
        (["site", "cordon", "r1/nope"], 3, "no site is called r1/nope"),
        (["deploy", "scale", "nope", "1"], 3, "no deployment"),
        (["deploy", "rollback", "nope"], 3, "no deployment"),
        (["balance", "nobody"], 3, "busbar tenant list"),
        (["usage", "req_" + "0" * 32], 3, ""),
        (["usage", "explain", "req_" + "0" * 32], 3, "no usage is posted"),
        (["refund", "req_" + "0" * 32, "--reason", "x"], 3, "no charge is posted"),
        (["correct", "0" * 32, "--reason", "x"], 3, "no transfer"),
        ([*GIVE, "nobody", "1"], 3, "tenant list"),
        ([*GIVE, "nobody", "a lot"], 3, ""),
        (["price", "show", "999999"], 3, "busbar price list"),
        (["price", "publish", "/nowhere.yaml"], 2, "there is no file"),
        (["refund", "req_" + "0" * 32], 2, ""),
        (["key", "revoke", "key_" + "0" * 32], 3, ""),
        (["key", "create", "nobody"], 3, "busbar tenant list"),
        (["key", "list", "nobody"], 3, "busbar tenant list"),
        (["tenant", "show", "nobody"], 3, "busbar tenant list"),
        (["tenant", "topup", "nobody", "1", "--reference", "r"], 3, "busbar tenant list"),
        (["usage", "--tenant", "nobody"], 3, "busbar tenant list"),
        (["ledger", "--tenant", "nobody"], 3, "busbar tenant list"),
        (["trace", "req_" + "0" * 32], 3, "no trace"),
        (["trace", "0" * 32], 3, "no trace"),
        (["usage", "not-an-id"], 2, "request id"),
        (["usage", "--since", "yesterday"], 2, "since"),
        (["usage", "--until", "2026-13-01"], 2, "until"),
        (["usage", "--limit", "0"], 2, ""),
        (["ledger", "--request", "not-an-id"], 2, "request id"),
        (["trace", "not-an-id"], 2, "request id"),
        (["key", "revoke", "key_nope"], 2, "key's id"),
        (["deploy", "status", "Not A Name"], 2, "name"),
        (["deploy", "rm", "Not A Name"], 2, "name"),
        (["node", "show", "r1/s1"], 2, "is not region/site/node"),
        (["node", "show", "r1/s1/n1"], 3, "no node is called r1/s1/n1"),
        (["node", "show", "r1.s1.n1"], 3, "no node is called r1/s1/n1"),
        (["node", "drain", "r1.s1.n1"], 3, "no node is called r1/s1/n1"),
        (["site", "show", "r8.s8"], 3, "no site is called r8/s8"),
        (["site", "set", "r8.s8", "--feeder", "north"], 3, "no site is called r8/s8"),
        (["site", "set", "r9/s8", "--feeder", "north"], 3, "no site is called r9/s8"),
        (["tenant", "create", "x", "--tenant-id", "not an id"], 2, "tenant_id"),
        (["tenant", "create", "x", "--currency", "doubloons"], 2, "currency"),
        (["tenant", "create", ""], 2, "name"),
        (["tenant", "topup", "nobody", "ten", "--reference", "r"], 2, "not an amount"),
        (["model", "push", "/nowhere"], 2, "not a directory"),
        (["deploy", "/nowhere.yaml"], 2, "there is no file"),
        (["key", "rotate", "key_nope"], 2, "key list"),
        (["plan", "show", "nope"], 3, "no plan"),
        (["tenant", "plan", "nobody", "nope"], 3, "no tenant"),
        (["tenant", "suspend", "nobody", "--reason", "r"], 3, "no tenant"),
        (["project", "list", "nobody"], 3, "no tenant"),
        (["plan", "set", "p", "--weight", "0"], 2, "weight"),
        (["plan", "set", "p", "--band", "vip"], 2, ""),
    ],
)
def test_a_failure_is_said_on_standard_error_by_its_status(
    busbar: Busbar, arguments: list[str], status: int, said: str
) -> None:
    failed = busbar(*arguments)

    assert failed.status == status
    assert failed.out == ""
    assert said in failed.err.replace("\n", " ")
    assert failed.err


def test_a_bundle_that_is_refused_says_why(busbar: Busbar, model: Path) -> None:
    manifest = model / "busbar.yaml"
    manifest.write_text(manifest.read_text() + "colour: red\n")
    refused = busbar("model", "push", str(model))

    assert refused.status == 2
    assert "colour" in refused.err


def test_a_wrong_token_is_said(busbar: Busbar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUSBAR_OPERATOR_TOKEN", "wrong")

    assert busbar("deploy", "list").status == 1
    assert "operator token" in busbar("tenant", "list").err
