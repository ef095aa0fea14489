"""Free loopback ports that two platforms on one machine do not both pick."""

from __future__ import annotations

import random
import socket

LOOPBACK = "127.0.0.1"
# Below Linux's default range for outgoing connections (32768 up), so that a port
# stays free while the process it belongs to is being restarted.
FIRST_PORT, LAST_PORT = 20_000, 32_000
HIGHEST_PORT = 65_535
ATTEMPTS = 200


class PortsExhaustedError(RuntimeError):
    """No free port was found; the message says in which range."""


class PortRefusedError(RuntimeError):
    """The very port that was asked for cannot be had; the message says why."""


class PortPool:
    """Hands out free loopback ports and reserves them, machine-wide, until closed.

    A reservation is an abstract socket's name: it keeps other pools away even while nothing
    listens on the port, and ends with this process however it dies.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def take(self, wanted: int | None = None) -> int:
        """Reserve `wanted`, or raise PortRefusedError; without one any free port."""
        if wanted is not None:
            return self._take_this(wanted)
        for _ in range(ATTEMPTS):
            port = random.randint(FIRST_PORT, LAST_PORT)  # noqa: S311
            if _is_free(port) and self._reserve(port):
                return port
        raise PortsExhaustedError(f"no free port between {FIRST_PORT} and {LAST_PORT}")

    def _take_this(self, port: int) -> int:
        if not 1 <= port <= HIGHEST_PORT:
            raise PortRefusedError(f"{port} is no port: 1 to {HIGHEST_PORT} are")
        try:
            _bind(port)
        except OSError as problem:
            raise PortRefusedError(f"port {port} cannot be had: {problem.strerror}") from problem
        if not self._reserve(port):
            raise PortRefusedError(f"port {port} cannot be had: this or another platform has it")
        return port

    def _reserve(self, port: int) -> bool:
        reservation = socket.socket(socket.AF_UNIX)
        try:
            reservation.bind(f"\0busbar-port-{port}")
        except OSError:
            reservation.close()
            return False
        self._held.append(reservation)
        return True

    def close(self) -> None:
        """Give all ports back."""
        for reservation in self._held:
            reservation.close()
        self._held.clear()


def _is_free(port: int) -> bool:
    try:
        _bind(port)
    except OSError:
        return False
    return True


def _bind(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((LOOPBACK, port))
