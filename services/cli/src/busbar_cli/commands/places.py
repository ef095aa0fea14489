"""busbar site, busbar node: what there is, what it was told, draining it."""

from __future__ import annotations

import time
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from busbar_cli.amounts import read_amount, show_amount
from busbar_cli.api import Api, Json, place_key
from busbar_cli.failures import CommandError, Exit
from busbar_cli.output import DEFAULT, Output, err, out, show_node, silent, table

site_app = App(
    name="site", help="Sites (r1/s1, or r1.s1 as in JSON): list, show, set, cordon, drain, resume."
)
node_app = App(
    name="node", help="Nodes (r1/s1/n1, or r1.s1.n1 as in JSON): list, show, cordon, drain, resume."
)

_SITES, _NODES = "/admin/v1/sites", "/admin/v1/nodes"
_POLL_S = 0.5
_CAP_KW_MIN, _CAP_KW_MAX = 0.001, 1_000_000
_GRACE_S = Parameter(validator=Number(gte=1, lte=3_600))
"""As the scheduler has them; neither takes nan or inf."""
_CLAIMED = """
Another agent was given this name, too: run {run_id} on host {host}. It waits and takes no work,
for run {holder_run_id} holds the name. Give it a name of its own."""
_LATE_S = 15.0
"""How much longer than its grace a drain is waited for: models unload after it."""


@site_app.command(name="list")
def list_sites(*, output: Output = DEFAULT) -> None:
    """List the sites."""
    answer = Api("scheduler").get(_SITES)
    output.print(answer, _site_table(answer["items"]))


@site_app.command(name="show")
def show_site(site: str, *, output: Output = DEFAULT) -> None:
    """Show one site: busbar site show r1/s1.

    Parameters
    ----------
    site
        region/site, such as r1/s1.
    """
    view = Api("scheduler").get(_site_path(site))
    output.print(view, _site_table([view]))


@site_app.command(name="set")
def set_site(
    site: str,
    *,
    power_cap_kw: float | Literal["none"] | None = None,
    energy_per_kwh: str | None = None,
    feeder: str | None = None,
    new: Annotated[bool, Parameter(negative="")] = False,
    output: Output = DEFAULT,
) -> None:
    """Describe a site: busbar site set r1/s1 --power-cap-kw 60 --energy-per-kwh 0.08.

    Parameters
    ----------
    site
        region/site, such as r1/s1. What is not given stays as it is.
    power_cap_kw
        Most that its replicas may draw together, or none: no limit.
    energy_per_kwh
        What a kilowatt hour costs there when placements are weighed; the ledger books energy at
        the prices of busbar price energy.
    feeder
        What powers it, or none: nothing that another site shares. Sites that share a feeder are
        lost together.
    new
        Also where no site is called that yet: it is described before its first node reports.
    """
    key, cap_w = place_key(site, "region/site"), _cap_w(power_cap_kw)
    known = {one["site"]: one for one in Api("scheduler").get(_SITES)["items"]}
    if key not in known and not new:
        raise CommandError(
            f"no site is called {show_node(key)}, and none of its nodes has reported; "
            "to describe it before it is there: --new",
            Exit.NOT_FOUND,
        )
    before = known.get(key, {})
    body = {
        "power_cap_w": before.get("power_cap_w") if power_cap_kw is None else cap_w,
        "energy_nanos_per_kwh": before.get("energy_nanos_per_kwh", 0)
        if energy_per_kwh is None
        else read_amount(energy_per_kwh),
        "feeder": before.get("feeder", "") if feeder is None else _feeder(feeder),
    }
    path = f"{_site_path(site)}?new=true" if new else _site_path(site)
    view = Api("scheduler").put(path, body)
    output.print(view, _site_table([view]))


@site_app.command(name="cordon")
def cordon_site(site: str, *, reason: str = "", output: Output = DEFAULT) -> None:
    """Place nothing new at a site; what is there stays.

    Parameters
    ----------
    site
        region/site, such as r1/s1.
    reason
        Why, for whoever reads the list next.
    """
    view = Api("scheduler").post(f"{_site_path(site)}/cordon", {"reason": reason})
    output.print(view, _site_table([view]))


@site_app.command(name="drain")
def drain_site(
    site: str,
    *,
    grace: Annotated[float, _GRACE_S] = 120.0,
    reason: str = "",
    wait: Annotated[bool, Parameter(negative="")] = False,
    output: Output = DEFAULT,
) -> None:
    """Have all requests gone from a site within --grace seconds, and then all models.

    Parameters
    ----------
    site
        region/site, such as r1/s1.
    grace
        Seconds that requests are given, 1 to 3600. For half of them what is there serves on while
        it is placed elsewhere; in the other half, two minutes at most, it finishes what it has in
        hand, and the rest goes elsewhere. Unloading comes on top: a few seconds, or what a load
        takes that is under way.
    reason
        Why, for whoever reads the list next.
    wait
        Wait until that is done, 15 s longer than the grace at most, and say what became of each
        replica.
    """
    key = place_key(site, "region/site")
    before = [one for one in Api("scheduler").get(_NODES)["items"] if _site_of(one) == key]
    body = {"grace_s": grace, "reason": reason}
    view = Api("scheduler").post(f"{_site_path(site)}/drain", body)
    if not wait:
        output.print(view, _site_table([view]))
        return
    began = time.monotonic()
    _tell(output, _drained([one["node"] for one in before], grace), before, began, grace)


@site_app.command(name="resume")
def resume_site(site: str, *, output: Output = DEFAULT) -> None:
    """Use a site as usual again; nodes that were told something by name stay so.

    Parameters
    ----------
    site
        region/site, such as r1/s1.
    """
    view = Api("scheduler").post(f"{_site_path(site)}/resume", {})
    output.print(view, _site_table([view]))


@node_app.command(name="list")
def list_nodes(*, output: Output = DEFAULT) -> None:
    """List the nodes."""
    answer = Api("scheduler").get(_NODES)
    output.print(answer, _node_table(answer["items"]))


@node_app.command(name="show")
def show_one(node: str, *, output: Output = DEFAULT) -> None:
    """Show one node: busbar node show r1/s1/n1.

    Parameters
    ----------
    node
        region/site/node, such as r1/s1/n1.
    """
    view = Api("scheduler").get(_node_path(node))
    if not output.json:
        output.print(view, _node_table([view]))
    rows = [
        [
            one["deployment"],
            one["state"],
            one["verdict"],
            ", ".join(show_node(at) for at in one["elsewhere"]),
        ]
        for one in view["replicas"]
    ]
    columns = ["DEPLOYMENT", "STATE", "VERDICT", "ALSO ON"]
    output.print(view, table(columns, rows, title="\nReplicas", empty="\nno replicas"))
    for one in [] if output.json else view["avoids"]:
        until = f"kept off for {one['for_s']} s more"
        output.print(view, f"\n{one['deployment']} is {until}: {one['reason']}")
    if (claim := view.get("claim")) and not output.json:
        output.print(view, _CLAIMED.format(**claim))


@node_app.command(name="cordon")
def cordon_node(node: str, *, reason: str = "", output: Output = DEFAULT) -> None:
    """Place nothing new on a node; what is there stays.

    Parameters
    ----------
    node
        region/site/node, such as r1/s1/n1.
    reason
        Why, for whoever reads the list next.
    """
    view = Api("scheduler").post(f"{_node_path(node)}/cordon", {"reason": reason})
    output.print(view, _node_table([view]))


@node_app.command(name="drain")
def drain_node(
    node: str,
    *,
    grace: Annotated[float, _GRACE_S] = 120.0,
    reason: str = "",
    wait: Annotated[bool, Parameter(negative="")] = False,
    output: Output = DEFAULT,
) -> None:
    """Have all requests gone from a node within --grace seconds, and then all models.

    Parameters
    ----------
    node
        region/site/node, such as r1/s1/n1.
    grace
        Seconds that requests are given, 1 to 3600. For half of them what is there serves on while
        it is placed elsewhere; in the other half, two minutes at most, it finishes what it has in
        hand, and the rest goes elsewhere. Unloading comes on top: a few seconds, or what a load
        takes that is under way.
    reason
        Why, for whoever reads the list next.
    wait
        Wait until that is done, 15 s longer than the grace at most, and say what became of each
        replica.
    """
    before = [Api("scheduler").get(_node_path(node))]
    body = {"grace_s": grace, "reason": reason}
    view = Api("scheduler").post(f"{_node_path(node)}/drain", body)
    if not wait:
        output.print(view, _node_table([view]))
        return
    began = time.monotonic()
    _tell(output, _drained([place_key(node, "region/site/node")], grace), before, began, grace)


@node_app.command(name="resume")
def resume_node(node: str, *, output: Output = DEFAULT) -> None:
    """Use a node as usual again, also for models that are kept off it because they failed there.

    Parameters
    ----------
    node
        region/site/node, such as r1/s1/n1.
    """
    view = Api("scheduler").post(f"{_node_path(node)}/resume", {})
    output.print(view, _node_table([view]))


def _drained(keys: list[str], grace_s: float) -> list[Json]:
    """Wait until the nodes are empty; raises CommandError when they are not in time."""
    until = time.monotonic() + grace_s + _LATE_S
    with err().status("draining"):
        while True:
            views = [one for one in Api("scheduler").get(_NODES)["items"] if one["node"] in keys]
            if all(one["empty"] for one in views):
                return views
            if time.monotonic() > until:
                left = ", ".join(show_node(one["node"]) for one in views if not one["empty"])
                raise CommandError(
                    f"{left} not empty after {grace_s + _LATE_S:g} s, {_LATE_S:g} s longer than "
                    "the grace; what loads or unloads there may take longer: see busbar node show",
                    Exit.UNAVAILABLE,
                )
            time.sleep(_POLL_S)


def _tell(
    output: Output, after: list[Json], before: list[Json], began: float, grace_s: float
) -> None:
    """What became of each replica that was there, and of the requests in hand."""
    deployments = {
        one["name"]: one for one in Api("scheduler").get("/admin/v1/deployments")["items"]
    }
    items = list[Json]()
    for node in before:
        for one in node["replicas"]:
            view = deployments.get(one["deployment"])
            at = [] if view is None else [x["node"] for x in view["replica_states"] if x["node"]]
            items.append(
                {
                    "node": node["node"],
                    "deployment": one["deployment"],
                    "now_on": at,
                    "status": "withdrawn" if view is None else view["status"],
                    "reason": "" if view is None else view["reason"],
                }
            )
    took_s = round(time.monotonic() - began, 1)
    answer = {
        "drained": [one["node"] for one in after],
        "took_s": took_s,
        "finished": _more("finished_count", after, before),
        "handed_back": _more("handed_back_count", after, before),
        "replicas": items,
    }
    rows = [
        [
            show_node(one["node"]),
            one["deployment"],
            ", ".join(show_node(at) for at in one["now_on"]) or "nowhere",
            one["status"],
            one["reason"],
        ]
        for one in items
    ]
    columns = ["DRAINED", "DEPLOYMENT", "NOW ON", "STATUS", "REASON"]
    output.print(answer, table(columns, rows, empty="drained; it held nothing"))
    if rows and not output.json:
        late_s = took_s - grace_s
        late = f", {late_s:.1f} s longer than its grace, for unloading" if late_s > 0 else ""
        said = "{finished} requests were finished, {handed_back} handed back."
        out().print(f"Took {took_s} s{late}; {said.format(**answer)}", soft_wrap=True)


def _more(count: str, after: list[Json], before: list[Json]) -> int:
    """How much a count of all nodes has grown; one that started anew counts from 0."""
    had = {one["node"]: int(one[count]) for one in before}
    return sum(int(one[count]) - min(had[one["node"]], int(one[count])) for one in after)


def _site_path(site: str) -> str:
    return f"{_SITES}/{show_node(place_key(site, 'region/site'))}"


def _node_path(node: str) -> str:
    return f"{_NODES}/{show_node(place_key(node, 'region/site/node'))}"


def _site_of(node: Json) -> str:
    return node["node"].rsplit(".", 1)[0]


def _cap_w(cap_kw: float | Literal["none"] | None) -> int | None:
    """As the API has it, where none is no limit."""
    if cap_kw is None or cap_kw == "none":
        return None
    if not _CAP_KW_MIN <= cap_kw <= _CAP_KW_MAX:
        raise CommandError(
            f"Invalid value {cap_kw:g} for --power-cap-kw. Must be {_CAP_KW_MIN} to {_CAP_KW_MAX}, "
            "or none for no limit; to place nothing at a site: busbar site cordon SITE, or drain",
            Exit.USAGE,
        )
    return round(cap_kw * 1_000)


def _feeder(name: str) -> str:
    """As the API has it, where one of its own is empty."""
    return "" if name == "none" else name


def _site_table(views: list[Json]) -> object:
    columns = ["SITE", "NODES>", "DRAWS>", "CAP>", "PER KWH>", "FEEDER", "ORDER", "REASON"]
    rows = [
        [
            show_node(one["site"]),
            one["nodes"],
            f"{one['drawn_w']} W",
            f"{one['power_cap_w']} W" if one["power_cap_w"] else "none",
            show_amount(one["energy_nanos_per_kwh"]),
            one["feeder"] or "its own",
            one["order"]["order"],
            one["order"]["reason"],
        ]
        for one in views
    ]
    return table(columns, rows, empty="no sites: no node has reported")


def _node_table(views: list[Json]) -> object:
    columns = [
        "NODE",
        "HEALTH",
        "ORDER",
        "MEMORY FREE>",
        "SLOTS FREE>",
        "IN HAND>",
        "REPLICAS>",
        "REASON",
    ]
    rows = [
        [
            show_node(one["node"]),
            one["health"],
            one["order"]["order"],
            f"{one['memory_free_mib']} of {one['memory_mib']} MiB",
            f"{one['slots_free']} of {one['slots']}",
            "unknown" if silent(one["health"]) else one["in_flight"],
            len(one["replicas"]),
            one["order"]["reason"] or one["refusal"],
        ]
        for one in views
    ]
    return table(columns, rows, empty="no nodes have reported")
