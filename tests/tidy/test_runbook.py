"""Python that the runbook has operators run."""

from __future__ import annotations

import ast
import importlib
import re
import textwrap
from pathlib import Path

import pytest

RUNBOOK = Path(__file__).resolve().parents[2] / "docs" / "runbook.md"
_SCRIPT = re.compile(r"python - <<'PY'\n(.*?)\n *PY\n", re.DOTALL)
SCRIPTS = [textwrap.dedent(found) for found in _SCRIPT.findall(RUNBOOK.read_text())]


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_it_imports_is_there_and_connects_with_passwords_and_credentials(script: str) -> None:
    imported = {
        (statement.module or "", name.name)
        for statement in ast.walk(ast.parse(script))
        if isinstance(statement, ast.ImportFrom)
        for name in statement.names
    }
    missing = [at for at in imported if not hasattr(importlib.import_module(at[0]), at[1])]

    assert missing == []
    # nats.connect takes a credentials file, which --sites has, for a password.
    assert "nats.connect(" not in script
    assert ("busbar_messaging.connection", "connect") in imported


def test_no_script_is_overlooked() -> None:
    assert len(SCRIPTS) == RUNBOOK.read_text().count("<<'PY'") > 0
