"""Free loopback ports that two platforms on one machine do not both pick."""

from __future__ import annotations

import random
import socket

LOOPBACK = "127.0.0.1"
# Below Linux's default range for outgoing connections (32768 up), so that a port
# stays free while the process it belongs to is being restarted.
FIRST_PORT, LAST_PORT = 20_000, 32_000
ATTEMPTS = 200


class PortsExhaustedError(RuntimeError):
    """No free port was found; the message says in which range."""


class PortPool:
    """Hands out free loopback ports and reserves them, machine-wide, until closed.

    A reservation is an abstract socket's name: it keeps other pools away even while nothing
    listens on the port, and ends with this process however it dies.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def take(self, wanted: int | None = None) -> int:
        """Reserve `wanted` if nobody has it, else any free port."""
        candidates = [] if wanted is None else [wanted]
        candidates += [random.randint(FIRST_PORT, LAST_PORT) for _ in range(ATTEMPTS)]  # noqa: S311
        for port in candidates:
            if _is_free(port) and self._reserve(port):
                return port
        raise PortsExhaustedError(f"no free port between {FIRST_PORT} and {LAST_PORT}")

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
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True
