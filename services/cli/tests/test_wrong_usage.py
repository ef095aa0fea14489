"""A command line that is wrong is told what would be right; no platform is needed for that."""

from __future__ import annotations

import pytest
from busbar_cli.main import run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["ledger", "demo"],
            "for a tenant: busbar ledger --tenant demo (see busbar ledger --help)",
        ),
        (["ledger", "a b"], "busbar ledger --tenant 'a b'"),
        (["usage", "demo"], "for a tenant's usage: busbar usage --tenant demo"),
        (["statement", "list", "acme"], "busbar statement list --tenant acme"),
        (["fleet", "extra"], "busbar fleet does not take extra (see busbar fleet --help)"),
        (["fleet", "--colour"], "--colour (see busbar fleet --help)"),
        (["ledger", "--tenat", "demo"], "Did you mean --tenant?"),
        (["tenant", "topup", "nobody"], "--amount requires an argument"),
        (["no-such-command"], "(see busbar --help)"),
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
