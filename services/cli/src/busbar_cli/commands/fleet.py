"""busbar fleet: nodes, deployments and gateways as telemetry sees them."""

from __future__ import annotations

from typing import Any

from busbar_cli.api import Api, Json
from busbar_cli.output import DEFAULT, Output, err, show_node, table


def fleet(*, output: Output = DEFAULT) -> None:
    """Show the fleet: nodes, deployments with queues and rates, gateways."""
    view = Api("telemetry").get("/admin/v1/fleet")
    if output.json:
        output.print(view, "")
        return
    output.print(view, _nodes(view))
    output.print(view, _deployments(view))
    output.print(view, _gateways(view))
    if not view["bus"]["connected"]:
        err().print("telemetry hears nothing from the bus: states are guesses", style="yellow")


def _nodes(view: Json) -> Any:
    rows = [
        [
            show_node(one["node"]),
            one["state"],
            one["triton_state"],
            f"{one['in_flight']}/{one['ready_slots']}",
            f"{one['memory_mib']} MiB",
            ", ".join(f"{at['deployment']} {at['state']}" for at in one["replicas"]),
            one["reason"] or one["triton_reason"],
        ]
        for one in view["nodes"]
    ]
    columns = ["NODE", "STATE", "TRITON", "SLOTS>", "MEMORY>", "MODELS", "REASON"]
    return table(columns, rows, title="Nodes", empty="no nodes have reported")


def _deployments(view: Json) -> Any:
    rows = [
        [
            one["deployment"],
            one["state"],
            f"{one['ready_replicas']}/{one['replicas']}",
            f"{one['in_flight']}/{one['ready_slots']}",
            one["queued"],
            f"{one['rates_10s']['completed_per_s']:.1f}",
            f"{one['rates_10s']['output_tokens_per_s']:.1f}",
            one["unready_reason"],
        ]
        for one in view["deployments"]
    ]
    columns = ["NAME", "STATE", "READY>", "SLOTS>", "QUEUED>", "REQ/S>", "TOK/S>", "REASON"]
    return table(columns, rows, title="\nDeployments", empty="no deployments")


def _gateways(view: Json) -> Any:
    rows = [
        [
            one["gateway"],
            one["region"],
            one["state"],
            one["in_flight"],
            one["queued"],
            one["completed_count"],
            one["failed_count"],
            one["refused_count"],
        ]
        for one in view["gateways"]
    ]
    columns = [
        "NAME",
        "REGION",
        "STATE",
        "IN-FLIGHT>",
        "QUEUED>",
        "ANSWERED>",
        "FAILED>",
        "REFUSED>",
    ]
    return table(columns, rows, title="\nGateways", empty="no gateways have reported")
