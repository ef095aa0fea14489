"""A connection to the bus for one command, and its failures in the command line's terms."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal, TypeVar

import structlog
from busbar_errors import BusbarError, NotFound, Unavailable
from busbar_messaging.connection import close, connect
from busbar_messaging.provision import ProvisionSettings
from nats.aio.client import Client
from nats.js.errors import APIError
from pydantic import SecretStr, ValidationError

from busbar_cli.endpoints import find_endpoints
from busbar_cli.failures import CommandError, Exit

T = TypeVar("T")
User = Literal["provisioner", "operator"]


class CommandBusSettings(ProvisionSettings):
    """A server that is there answers a command at once; services start before it and wait."""

    bus_connect_timeout: timedelta = timedelta(seconds=5)


def on_the_bus(user: User, work: Callable[[Client, ProvisionSettings], Awaitable[T]]) -> T:
    """Connect as `user`, do the work, close; raises CommandError for what the bus refuses."""
    with _errors_only():
        return asyncio.run(_session(user, work))


@contextmanager
def _errors_only() -> Iterator[None]:
    """What the bus's library logs on the way is not the command's answer."""
    before = structlog.get_config()
    structlog.configure(
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
    )
    try:
        yield
    finally:
        structlog.configure(**before)


async def _session(user: User, work: Callable[[Client, ProvisionSettings], Awaitable[T]]) -> T:
    settings = _settings(user)
    try:
        client = await connect(settings, "busbar-cli")
    except Unavailable as error:
        raise CommandError(error.reason, Exit.UNAVAILABLE) from error
    try:
        return await work(client, settings)
    except NotFound as error:
        raise CommandError(error.reason, Exit.NOT_FOUND) from error
    except Unavailable as error:
        raise CommandError(error.reason, Exit.UNAVAILABLE) from error
    except (APIError, BusbarError) as error:
        raise CommandError(f"the bus refused: {error}") from error
    except TimeoutError as error:
        raise CommandError("the bus does not answer", Exit.UNAVAILABLE) from error
    finally:
        await close(client)


def _settings(user: User) -> ProvisionSettings:
    endpoints = find_endpoints()
    try:
        return CommandBusSettings(
            nats_url=endpoints.bus_url,
            nats_user=user,
            nats_password=SecretStr(endpoints.bus_password(user)),
            **endpoints.fleet,
        )
    except ValidationError as error:
        raise CommandError(f"BUSBAR_REGIONS or BUSBAR_SITES: {error}", Exit.USAGE) from error
