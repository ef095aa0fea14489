"""How a command can fail, and the exit status that says so."""

from __future__ import annotations

import inspect
import shlex
from enum import IntEnum

from cyclopts import CycloptsError, UnusedCliTokensError


class Exit(IntEnum):
    """Exit statuses of `busbar`, for scripts."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNAVAILABLE = 4


EXIT_HELP = (
    "Exit status: 0 done, 1 refused or failed, 2 wrong usage or a malformed value, 3 not found, "
    "4 the platform cannot be reached or is not ready."
)


class CommandError(Exception):
    """What went wrong and what to do next; ends the command with `exit_status`."""

    def __init__(self, message: str, exit_status: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.exit_status = exit_status


def usage_problem(error: CycloptsError) -> str:
    """What is wrong with a command line, and where to read what would be right."""
    command = " ".join(["busbar", *(error.command_chain or ())])
    said = str(error)
    if isinstance(error, UnusedCliTokensError):
        words = error.unused_tokens or []
        said = f"{command} does not take {shlex.join(words)}"
        options = inspect.signature(error.target).parameters if error.target else {}
        if len(words) == 1 and "tenant" in options and not words[0].startswith("-"):
            said += f"; for a tenant: {command} --tenant {shlex.quote(words[0])}"
    else:
        said = said if said.endswith("...") else said.removesuffix(".")
    return f"busbar: {said} (see {command} --help)"
