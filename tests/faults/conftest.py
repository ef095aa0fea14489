"""What the faults cost, collected and shown when all tests are through."""

from __future__ import annotations

import pytest
from harness.figures import Figures, table

_ROWS = pytest.StashKey[list[Figures]]()


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> list[Figures]:
    """Rows of the table that is printed at the end."""
    return request.config.stash.setdefault(_ROWS, [])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table."""
    if rows := config.stash.get(_ROWS, []):
        terminalreporter.section("what each fault cost")
        terminalreporter.write_line(table(rows))
