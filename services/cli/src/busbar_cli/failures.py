"""How a command can fail, and the exit status that says so."""

from __future__ import annotations

from enum import IntEnum


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
