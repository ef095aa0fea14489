"""Structured logs: JSON lines on standard output, or aligned text on a terminal."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from contextlib import suppress
from typing import TextIO, cast

import structlog

WAITING_MAX_BYTES = 64 * 1024


class UnfailingOutput:
    """Standard output, whose failures concern nobody: a log is no reason to end a service.

    What a full disk refuses waits, the older lines rather than the newer, and is written whole
    once there is room. Standard output is looked up at each line: whoever replaces it gets what
    comes next.
    """

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._one_at_a_time = threading.Lock()

    def write(self, text: str) -> int:
        """Write the lines of `text`, now or later; never raises OSError."""
        line = text.encode(errors="backslashreplace")
        with self._one_at_a_time:
            if not self._waiting or len(self._waiting) + len(line) <= WAITING_MAX_BYTES:
                self._waiting += line
            with suppress(OSError):
                self._write_waiting()
        return len(text)

    def flush(self) -> None:
        """Nothing to do: what could be written has been."""

    def _write_waiting(self) -> None:
        try:
            descriptor = sys.stdout.fileno()
        except io.UnsupportedOperation:  # replaced by something in memory
            sys.stdout.write(self._waiting.decode())
            self._waiting.clear()
            return
        while self._waiting:
            # Not through sys.stdout: it forgets the rest of a line of which a part was written.
            written = os.write(descriptor, self._waiting)
            del self._waiting[:written]


def configure_logging(service: str, level: str = "info") -> None:
    """Set up structlog and route the standard library's logging through it."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer()
        if sys.stdout.isatty()
        else structlog.processors.JSONRenderer()
    )
    output = UnfailingOutput()
    numeric = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", output)),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=max(numeric, logging.WARNING), handlers=[handler], force=True)
    structlog.contextvars.bind_contextvars(service=service)
