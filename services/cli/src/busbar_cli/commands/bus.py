"""busbar bus: the streams, buckets and consumers that everything else relies on."""

from __future__ import annotations

from typing import Literal

from busbar_messaging.provision import ProvisionSettings, Report
from busbar_messaging.provision import apply as apply_topology
from busbar_messaging.provision import verify as verify_topology
from cyclopts import App
from nats.aio.client import Client

from busbar_cli.bus_session import on_the_bus
from busbar_cli.commands.dead_letters import letter, list_letters, replay
from busbar_cli.failures import CommandError
from busbar_cli.output import DEFAULT, Output, table

app = App(name="bus", help="The bus: verify it, apply the topology, list and replay dead letters.")
app.command(list_letters, name="letters")
app.command(letter)
app.command(replay)


@app.command
def apply(*, output: Output = DEFAULT) -> None:
    """Create or update what is missing or different; deletes nothing.

    BUSBAR_REGIONS and BUSBAR_SITES (JSON lists) say which fleet; default: that of this platform.
    """
    _report("apply", output)


@app.command
def verify(*, output: Output = DEFAULT) -> None:
    """Compare the bus with the topology; exit status 1 when it differs."""
    _report("verify", output)


def _report(command: Literal["apply", "verify"], output: Output) -> None:
    async def walk(client: Client, settings: ProvisionSettings) -> Report:
        step = apply_topology if command == "apply" else verify_topology
        return await step(client, settings)

    report = on_the_bus("provisioner", walk)
    rows = [[state, name] for name, state in report.assets.items()]
    answer = {"right": report.right, "assets": report.assets}
    output.print(answer, table(["STATE", "ASSET"], rows))
    if not report.right:
        raise CommandError("the bus differs from the topology; repair it: busbar bus apply")
