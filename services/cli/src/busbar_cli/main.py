"""The command `busbar`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from busbar_cli.commands import (
    adjustments,
    invoicing,
    keys,
    payments,
    places,
    plans,
    projects,
    statements,
    tenants,
    webhooks,
)
from busbar_cli.commands.audit import audit, leakage
from busbar_cli.commands.fleet import fleet
from busbar_cli.commands.money import balance, ledger, usage_app
from busbar_cli.commands.traces import trace
from busbar_cli.failures import EXIT_HELP, CommandError, Exit, usage_problem
from busbar_cli.output import drop_unwritten, err, shown

app = App(
    name="busbar",
    help=(
        "Operate Busbar. Finds the platform through BUSBAR_ENDPOINTS or "
        "$BUSBAR_HOME/endpoints.json (default .busbar). Every command takes --json."
    ),
    help_epilogue=EXIT_HELP,
    version_flags=[],
    default_parameter=Parameter(negative_iterable=()),  # --empty-deployment would be: all of them
)
for _noun in (
    *(tenants, projects, keys, plans),
    *(statements, invoicing, payments, webhooks),
):
    app.command(_noun.app)
# Loaded when they are asked for: the bus client and YAML double the time to start.
app.command(
    "busbar_cli.commands.deployments:app",
    name="deploy",
    help="Deployments: declare what a FILE says, list, status, explain, scale, rollback, rm.",
)
app.command(
    "busbar_cli.commands.prices:app",
    name="price",
    help="The price book: list versions, show one, publish the next; prices of energy.",
)
app.command(
    "busbar_cli.commands.models:app",
    name="model",
    help="Model bundles: push a directory, list and remove what is there, make a key.",
)
app.command(
    "busbar_cli.commands.bus:app",
    name="bus",
    help="The bus: verify it, apply the topology, list and replay dead letters.",
)
for _group in (usage_app, adjustments.credit, places.site_app, places.node_app):
    app.command(_group)
for _command in (fleet, balance, ledger, adjustments.refund, adjustments.correct, audit, leakage):
    app.command(_command)
app.command(trace)


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; return its exit status."""
    try:
        if _names_no_command(arguments):
            app.help_print(list(arguments), console=err())
            return Exit.USAGE
        app(list(arguments), exit_on_error=False, print_error=False, result_action="return_none")
    except CycloptsError as error:
        err().print(shown(usage_problem(error)), style="red", soft_wrap=True, markup=False)
        return Exit.USAGE
    except CommandError as error:
        said = shown(f"busbar: {error.message}")
        err().print(said, style="red", soft_wrap=True, markup=False)
        return error.exit_status
    except BrokenPipeError:
        return Exit.OK
    return Exit.OK


def _names_no_command(arguments: Sequence[str]) -> bool:
    """Whether it ends at a group of commands, such as `busbar key`: nothing to carry out."""
    _, apps, rest = app.parse_commands(list(arguments))
    return not rest and apps[-1].default_command is None


def main() -> None:
    """Entry point."""
    status = run(sys.argv[1:])
    drop_unwritten()
    sys.exit(status)
