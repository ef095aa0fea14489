"""The command `busbar`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from busbar_cli.commands import deployments, models
from busbar_cli.failures import EXIT_HELP, CommandError, Exit
from busbar_cli.output import err

app = App(
    name="busbar",
    help=(
        "Operate Busbar. Finds the platform through BUSBAR_ENDPOINTS or "
        "$BUSBAR_HOME/endpoints.json (default .busbar). Every command takes --json."
    ),
    help_epilogue=EXIT_HELP,
    version_flags=[],
)
for _noun in (deployments, models):
    app.command(_noun.app)


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; return its exit status."""
    try:
        app(list(arguments), exit_on_error=False, print_error=True, result_action="return_none")
    except CycloptsError:
        return Exit.USAGE
    except CommandError as error:
        err().print(f"busbar: {error.message}", style="red", soft_wrap=True, markup=False)
        return error.exit_status
    except BrokenPipeError:
        return Exit.OK
    return Exit.OK


def main() -> None:
    """Entry point."""
    sys.exit(run(sys.argv[1:]))
