"""One POST to an address that a stranger chose: nowhere inside, not for long, and reading little.

The address that a name resolves to is checked and connected to in one step, so a name that says
something else a moment later gains nothing. Redirects are answers like others.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeAlias

import httpcore
from busbar_errors import Rejected

from busbar_billing.domain.web_targets import Target, TargetPolicy, check_address
from busbar_billing.domain.webhooks import Attempt

TIMEOUT = timedelta(seconds=10)
"""Of a whole attempt, from the name to the status."""
_ADDRESSES_TRIED_MAX = 3
_RESOLVERS = 8
_ERROR_CHARACTERS_MAX = 200

Resolve: TypeAlias = Callable[[str], Awaitable[list[str]]]


class SystemResolver:
    """The system's resolver on threads of its own, so that a slow name delays nobody else."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="webhook-names")

    async def __call__(self, host: str) -> list[str]:
        """Addresses of a host; raises OSError when there are none."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        )
        return [str(one[4][0]) for one in found]


class GuardedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to addresses that the policy allows, whatever a name says."""

    def __init__(self, policy: TargetPolicy, resolve: Resolve) -> None:
        self._policy = policy
        self._resolve = resolve
        # Its type is also that of a stand-in for where anyio is missing.
        self._inner: httpcore.AsyncNetworkBackend = httpcore.AnyIOBackend()  # pyright: ignore[reportAttributeAccessIssue]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that answers; raise Rejected when none is allowed."""
        try:
            addresses = self._allowed(await self._resolve(host))
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} cannot be resolved") from error
        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._inner.connect_tcp(
            addresses[-1], port, timeout, local_address, socket_options
        )

    def _allowed(self, addresses: list[str]) -> list[str]:
        allowed: list[str] = []
        for text in dict.fromkeys(addresses):
            with contextlib.suppress(Rejected):
                check_address(ipaddress.ip_address(text), self._policy)
                allowed.append(text)
        if not allowed:
            # Which ones is not said: the tenant need not learn what our resolver knows.
            raise Rejected("the host has no public address")
        return allowed[:_ADDRESSES_TRIED_MAX]


class Poster:
    """Posts, each time on a connection of its own."""

    def __init__(
        self,
        policy: TargetPolicy,
        resolve: Resolve | None = None,
        *,
        timeout: timedelta = TIMEOUT,
    ) -> None:
        self._timeout = timeout
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpcore.default_ssl_context(),
            max_keepalive_connections=0,
            network_backend=GuardedNetwork(policy, resolve or SystemResolver()),
        )

    async def post(self, target: Target, headers: Mapping[str, str], body: bytes) -> Attempt:
        """Return what came of it; never raises for what a receiver does."""
        try:
            async with asyncio.timeout(self._timeout.total_seconds()):
                return Attempt(await self._status(target, headers, body))
        except TimeoutError:
            return Attempt(None, f"no answer within {self._timeout.total_seconds():g} s")
        except Rejected as error:
            return Attempt(None, error.reason)
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            said = str(error) or type(error).__name__
            return Attempt(None, said[:_ERROR_CHARACTERS_MAX])

    async def _status(self, target: Target, headers: Mapping[str, str], body: bytes) -> int:
        sent = {
            "host": target.authority,
            "content-type": "application/json",
            "content-length": str(len(body)),
            "user-agent": "busbar-webhooks/1",
            "connection": "close",
            **headers,
        }
        url = httpcore.URL(
            scheme=target.scheme.encode(),
            host=target.host.encode(),
            port=target.port,
            target=target.path.encode(),
        )
        # The status says it all; nothing of the body is read.
        async with self._pool.stream("POST", url, headers=list(sent.items()), content=body) as got:
            return got.status

    async def close(self) -> None:
        """Close."""
        await self._pool.aclose()
