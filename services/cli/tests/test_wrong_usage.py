"""A command line that is wrong is told what would be right; no platform is needed for that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from busbar_cli.main import run


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A platform of which nothing answers."""
    nowhere = "http://127.0.0.1:1"
    known = {"admin": {"billing": nowhere, "scheduler": nowhere}, "keys": {"operator": "op_x"}}
    endpoints = tmp_path / "endpoints.json"
    endpoints.write_text(json.dumps(known))
    monkeypatch.setenv("BUSBAR_ENDPOINTS", str(endpoints))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["ledger", "demo"],
            "for a tenant: busbar ledger --tenant demo (see busbar ledger --help)",
        ),
        (["ledger", "a b"], "busbar ledger --tenant 'a b'"),
        (["refund", "demo", "--reason", "x"], "'demo' is no request id"),
        (["usage", "explain", "req_../../tenants"], "is no request id"),
        (["usage", "demo"], "for a tenant's usage: busbar usage --tenant demo"),
        (["statement", "list", "acme"], "busbar statement list --tenant acme"),
        (["fleet", "extra"], "busbar fleet does not take extra (see busbar fleet --help)"),
        (["fleet", "--colour"], "--colour (see busbar fleet --help)"),
        (["ledger", "--tenat", "demo"], "Did you mean --tenant?"),
        (["tenant", "topup", "nobody"], "--amount requires an argument"),
        (["tenant", "topup", "demo", "1"], "--reference"),
        (["credit", "give", "demo", "1", "--expires", "2090-01-01T00:00:00Z"], "--reference"),
        (["refund", "req_" + "0" * 32, "1", "--reason", "x"], "name this time with --reference"),
        (["no-such-command"], "(see busbar --help)"),
        (["plan", "set", "p", "--budget", "0"], "say --budget none for that; to serve nothing"),
        (["plan", "set", "p", "--budget", "0.00"], "--budget 0 would be no limit at all"),
        (["plan", "set", "p", "--in-flight", "0"], "--in-flight 0 would be no limit at all"),
        (["site", "drain", "r1/s1/n1"], "is not region/site"),
        (["site", "drain", "r1.s1.n1"], "is not region/site"),
        (["price", "energy", "r1"], "is not region/site"),
        (["site", "set", "r1/s1", "--power-cap-kw", "0"], "or none for no limit; to place nothing"),
        (["site", "set", "r1/s1", "--power-cap-kw", "-1"], "Must be 0.001 to 1000000, or none"),
        (["key", "create", "t", "--empty-deployment"], "--empty-deployment"),
        (["key", "create", "t", "--empty-scope"], "--empty-scope"),
    ],
)
def test_wrong_usage_says_what_would_be_right(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    status = run(arguments)
    out, err = capsys.readouterr()

    assert (status, out) == (2, "")
    assert said in err
    assert err.startswith("busbar: ")


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e300", "-1"])
@pytest.mark.parametrize(
    "command",
    [
        ["site", "set", "r1/s1", "--power-cap-kw"],
        ["site", "drain", "r1/s1", "--grace"],
        ["node", "drain", "r1/s1/n1", "--grace"],
        ["deploy", "models.yaml", "--wait", "--timeout"],
    ],
    ids=" ".join,
)
def test_a_number_that_measures_nothing_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], command: list[str], number: str
) -> None:
    status = run([*command[:-1], f"{command[-1]}={number}"])
    out, err = capsys.readouterr()

    assert (status, out) == (2, "")
    assert f"for {command[-1]}. Must be" in err


@pytest.mark.parametrize("said", [".nan", ".inf", "2026-01-01"])
def test_a_price_that_is_no_number_is_wrong_usage(
    unreachable: None, capsys: pytest.CaptureFixture[str], tmp_path: Path, said: str
) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(f"classes: {{default: {{request: {{amount_nanos: {said}}}}}}}")
    status = run(["price", "publish", str(file)])
    _, err = capsys.readouterr()

    assert status == 2
    assert err.startswith(f"busbar: {file} is not a price book")


def test_a_price_that_stands_there_twice_is_wrong_usage(
    unreachable: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("classes:\n  default:\n    request: 1\n    request: 2\n")
    status = run(["price", "publish", str(file)])
    _, err = capsys.readouterr()

    assert status == 2
    assert "found 'request' twice" in err


@pytest.mark.parametrize("token", ["op_\u00e9", "op_1\n", "op_ 1"])
def test_a_token_that_no_header_can_hold_is_wrong_usage_and_not_shown(
    unreachable: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    token: str,
) -> None:
    monkeypatch.setenv("BUSBAR_OPERATOR_TOKEN", token)
    status = run(["tenant", "list"])
    _, err = capsys.readouterr()

    assert status == 2
    assert "BUSBAR_OPERATOR_TOKEN" in err
    assert "op_" not in err


NAMED = [
    ["deploy", "status"],
    ["deploy", "rm"],
    ["plan", "delete"],
    ["statement", "show"],
    ["entity", "show"],
    ["project", "archive"],
]


@pytest.mark.parametrize("command", NAMED, ids=" ".join)
@pytest.mark.parametrize(
    "name",
    ["", "..", "a\0b", "\x1b[31mred", "\u202eevil"],
    ids=["empty", "up", "nul", "red", "rtl"],
)
def test_what_can_be_no_name_is_asked_of_nobody(
    unreachable: None, capsys: pytest.CaptureFixture[str], command: list[str], name: str
) -> None:
    status = run([*command, "--", name])
    out, err = capsys.readouterr()

    assert (status, out) == (2, "")
    assert err == f"busbar: {name!r} is no name\n"


@pytest.mark.parametrize(
    "command",
    [
        ["ledger", "--tenant", ""],
        ["usage", "--tenant", ""],
        ["leakage", "--tenant", ""],
        ["statement", "list", "--tenant", ""],
    ],
    ids=" ".join,
)
def test_an_empty_tenant_is_not_all_tenants(
    unreachable: None, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """A script's empty variable: what is everybody's is asked for without --tenant."""
    status = run(command)
    _, err = capsys.readouterr()

    assert status == 3
    assert err.startswith("busbar: no tenant is called ''")


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000], ids=["nul", "long"])
@pytest.mark.parametrize(
    "command", [["deploy"], ["model", "push"], ["price", "publish"]], ids=" ".join
)
def test_what_can_be_no_file_is_wrong_usage(
    unreachable: None, capsys: pytest.CaptureFixture[str], command: list[str], path: str
) -> None:
    status = run([*command, path])
    _, err = capsys.readouterr()

    assert status == 2
    assert err.startswith("busbar: ")
    assert "\0" not in err


@pytest.mark.parametrize("arguments", [[], ["key"], ["node"], ["bus"]], ids=str)
def test_a_group_without_a_command_is_wrong_usage_and_shows_its_commands(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    asked = run([*arguments, "--help"])
    help_out, _ = capsys.readouterr()
    status = run(arguments)
    out, err = capsys.readouterr()

    assert (asked, status, out) == (0, 2, "")
    assert err.split() == help_out.split()
