"""busbar bus: the streams, buckets and consumers that everything else relies on."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Literal

import structlog
from busbar_errors import BusbarError, Unavailable
from busbar_messaging.connection import close, connect
from busbar_messaging.provision import ProvisionSettings, Report
from busbar_messaging.provision import apply as apply_topology
from busbar_messaging.provision import verify as verify_topology
from cyclopts import App
from nats.js.errors import APIError
from pydantic import SecretStr, ValidationError

from busbar_cli.endpoints import find_endpoints
from busbar_cli.failures import CommandError, Exit
from busbar_cli.output import DEFAULT, Output, table

app = App(name="bus", help="The bus: bring it to the topology, or compare it.")

_USER = "provisioner"


@app.command
def apply(*, output: Output = DEFAULT) -> None:
    """Create or update what is missing or different; deletes nothing.

    BUSBAR_REGIONS and BUSBAR_SITES (JSON lists) say which fleet; default r1 and r1/s1.
    """
    _report("apply", output)


@app.command
def verify(*, output: Output = DEFAULT) -> None:
    """Compare the bus with the topology; exit status 1 when it differs."""
    _report("verify", output)


def _report(command: Literal["apply", "verify"], output: Output) -> None:
    report = asyncio.run(_walk(command))
    rows = [[state, name] for name, state in report.assets.items()]
    answer = {"right": report.right, "assets": report.assets}
    output.print(answer, table(["STATE", "ASSET"], rows))
    if not report.right:
        raise CommandError("the bus differs from the topology; repair it: busbar bus apply")


async def _walk(command: Literal["apply", "verify"]) -> Report:
    structlog.configure(
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
    )
    settings = _settings()
    try:
        client = await connect(settings, "busbar-cli")
    except Unavailable as error:
        raise CommandError(error.reason, Exit.UNAVAILABLE) from error
    try:
        walk = apply_topology if command == "apply" else verify_topology
        return await walk(client, settings)
    except (APIError, BusbarError) as error:
        raise CommandError(f"the bus refused: {error}") from error
    except TimeoutError as error:
        raise CommandError("the bus does not answer", Exit.UNAVAILABLE) from error
    finally:
        await close(client)


def _settings() -> ProvisionSettings:
    endpoints = find_endpoints()
    try:
        return ProvisionSettings(
            nats_url=endpoints.bus_url,
            nats_user=_USER,
            nats_password=SecretStr(endpoints.bus_password(_USER)),
        )
    except ValidationError as error:
        raise CommandError(f"BUSBAR_REGIONS or BUSBAR_SITES: {error}", Exit.USAGE) from error
