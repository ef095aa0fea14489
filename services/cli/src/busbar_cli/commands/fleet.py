"""busbar fleet: nodes, deployments and gateways as telemetry sees them; what nodes were told."""

from __future__ import annotations

from typing import Any

from busbar_cli.api import Api, Json
from busbar_cli.failures import CommandError
from busbar_cli.output import DEFAULT, Output, err, show_node, silent, table


def fleet(*, output: Output = DEFAULT) -> None:
    """Show the fleet: nodes, deployments with queues and rates, gateways."""
    view = Api("telemetry").get("/admin/v1/fleet")
    add_orders(view["nodes"], _told())
    if output.json:
        output.print(view, "")
        return
    if not view["bus"]["connected"]:
        err().print(
            "telemetry hears nothing from the bus: what follows is what it heard last",
            style="yellow",
        )
    output.print(view, _nodes(view))
    output.print(view, _deployments(view))
    output.print(view, _gateways(view))


def _told() -> list[Json]:
    """What nodes were told; nothing while the scheduler is away, for the rest is worth seeing."""
    try:
        return Api("scheduler").get("/admin/v1/nodes")["items"]
    except CommandError as error:
        err().print(
            f"not shown: who is cordoned, drained or in quarantine ({error})", style="yellow"
        )
        return []


def add_orders(nodes: list[Json], told: list[Json]) -> None:
    """Say of each node what it was told; of one that serves it is None."""
    orders = {one["node"]: one["order"] for one in told if one["order"]["order"] != "serve"}
    for node in nodes:
        node["order"] = orders.get(node["node"])


def why(node: Json) -> str:
    """Why a node is not as it should be: what it was told comes before what it says itself."""
    order = node["order"]
    if order is None:
        return node["reason"] or node["triton_reason"]
    return f"{order['order']}: {order['reason']}" if order["reason"] else order["order"]


def promised(deployment: Json) -> str:
    """How many replicas it is promised; and up to how many, where demand may ask for more."""
    least, most = deployment["replicas"], deployment.get("max_replicas", 0)
    return f"{least}-{most}" if most > least else f"{least}"


def _nodes(view: Json) -> Any:
    rows = [
        [
            show_node(one["node"]),
            one["state"],
            one["triton_state"],
            "unknown" if silent(one["state"]) else f"{one['in_flight']}/{one['ready_slots']}",
            f"{one['memory_mib']} MiB",
            ", ".join(f"{at['deployment']} {at['state']}" for at in one["replicas"]),
            why(one),
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
            f"{one['ready_replicas']}/{promised(one)}",
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
