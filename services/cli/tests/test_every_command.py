"""What holds for every command there is, those of tomorrow included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_type_hints

from busbar_cli.main import app
from busbar_cli.output import Output
from cyclopts import App


def commands(group: App, path: str = "busbar") -> Iterator[tuple[str, Any]]:
    """Every command below a group by its full name, what a bare group does as well."""
    if group.default_command is not None:
        yield path, group.default_command
    for name in group:
        if not name.startswith("-"):
            yield from commands(group[name], f"{path} {name}")


def test_every_command_answers_in_json_when_asked() -> None:
    found = dict(commands(app))
    without = [
        name
        for name, command in found.items()
        if name != "busbar" and get_type_hints(command).get("output") is not Output
    ]

    assert without == []
    assert {"busbar fleet", "busbar usage", "busbar usage explain", "busbar bus verify"} <= {*found}
