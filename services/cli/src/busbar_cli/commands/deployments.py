"""busbar deploy: what should run, and how far it has come."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.text import Text

from busbar_cli.amounts import NANOS, show_amount
from busbar_cli.api import Api, Json, segment
from busbar_cli.commands.tenants import find_tenant
from busbar_cli.deployment_file import Declared, read_deployments
from busbar_cli.failures import CommandError, Exit
from busbar_cli.output import DEFAULT, Output, brief, err, show_digest, show_node, table
from busbar_cli.waiting import Patience, wait_until_ready

app = App(
    name="deploy",
    help="Deployments: declare what a FILE says, list, status, explain, scale, rollback, rm.",
)

_DEPLOYMENTS = "/admin/v1/deployments"
_WAIT_S_MAX = 604_800
_LEAVING = "leaving"


@app.default
def deploy(
    file: Path,
    *,
    wait: Annotated[bool, Parameter(negative="")] = False,
    timeout: Annotated[float, Parameter(validator=Number(gte=0, lte=_WAIT_S_MAX))] = 300.0,
    approve: Annotated[bool, Parameter(negative="")] = False,
    again: Annotated[bool, Parameter(negative="")] = False,
    output: Output = DEFAULT,
) -> None:
    """Declare the deployments of FILE: busbar deploy models.yaml --wait.

    Another bundle is loaded beside the one that serves, and takes over when as much of it is ready;
    where it never is, nothing changes. With rollout: in FILE it is first tried with a share of the
    requests, and goes back when it does worse. Where there is no room for both, at_once: true
    unloads the old one first: nothing answers meanwhile. A version that went back is not tried a
    second time on the same terms: all else of FILE is taken, and the command fails and says so.

    Parameters
    ----------
    file
        YAML: a list of {name, bundle or path, replicas, regions, ...}. A bundle is named by
        its name (the newest is taken) or digest; a path is a model directory that is pushed first.
    wait
        Wait until every replica is ready and every new version has taken over, showing progress on
        standard error; fails when one is rolled back.
    timeout
        Longest wait, seconds; a week at most.
    approve
        Vouch for the code in what is pushed, too, as busbar model push --approve does.
    again
        Try versions that went back once more on the same terms.
    """
    declared = read_deployments(file)
    tenant_ids = _tenant_ids(file, declared)
    bundles = {
        one.name: _bundle(one, approve=approve, show_progress=not output.json) for one in declared
    }
    names = [one.name for one in declared]
    bodies = {one.name: _body(one, bundles[one.name], tenant_ids) for one in declared}
    if again:
        bodies = {name: {**body, "again": True} for name, body in bodies.items()}
    _check(bodies)
    before = Api("scheduler").get(_DEPLOYMENTS)["items"]
    answers = _declare(bodies)
    for line in remarks(declared, before, _views(names)):
        err().print(line, soft_wrap=True, markup=False)
    if wait:
        patience = Patience(started_at=time.monotonic(), timeout_s=timeout)
        views = wait_until_ready(lambda: _views(names), patience)
    else:
        views = _views(names)
    output.print({"items": views}, _summary(views))
    _refuse_held_back(file, answers)
    _refuse_unplaceable(views)


@app.command(name="list")
def list_(*, output: Output = DEFAULT) -> None:
    """List the deployments."""
    answer = Api("scheduler").get(_DEPLOYMENTS)
    output.print(answer, _summary(answer["items"]))


@app.command
def status(name: str, *, output: Output = DEFAULT) -> None:
    """Show one deployment: where its replicas are and what they are waiting for."""
    view = Api("scheduler").get(f"{_DEPLOYMENTS}/{segment(name)}")
    if not output.json:
        output.print(view, _summary([view]))
        if brief(view["reason"]) != view["reason"]:
            output.print(view, Text(view["reason"]))
        if view["scaling"]:
            output.print(view, _scaling(view))
        for line in _rollout(view["rollout"]):
            output.print(view, line)
    rows = replica_rows(view["replica_states"])
    output.print(view, table(["NODE", "STATE", "REASON"], rows, title="\nreplicas"))


@app.command
def rm(name: str, *, output: Output = DEFAULT) -> None:
    """Withdraw a deployment; its replicas finish what they have in hand."""
    Api("scheduler").delete(f"{_DEPLOYMENTS}/{segment(name)}")
    output.print({"withdrawn": name}, f"{name} withdrawn")


@app.command
def scale(
    name: str, replicas: int, *, max_replicas: int | None = None, output: Output = DEFAULT
) -> None:
    """Promise another number of replicas: busbar deploy scale chat 4 --max-replicas 8.

    A number that can never fit is promised all the same, and fails with the reason.
    """
    body = {"replicas": replicas, "max_replicas": max_replicas}
    view = Api("scheduler").post(f"{_DEPLOYMENTS}/{segment(name)}/scale", body)
    output.print(view, _summary([view]))
    _refuse_unplaceable([view])


@app.command
def rollback(
    name: str,
    *,
    at_once: Annotated[bool, Parameter(negative="")] = False,
    output: Output = DEFAULT,
) -> None:
    """Give up the version on trial, or go back to the bundle that served before the present one.

    That one is loaded first. One that can never fit fails with the reason, and the present one
    serves on. What was rolled back is had again by busbar deploy FILE.

    Parameters
    ----------
    at_once
        Do not let the present one serve until that is ready again: nothing answers meanwhile.
    """
    view = Api("scheduler").post(f"{_DEPLOYMENTS}/{segment(name)}/rollback", {"at_once": at_once})
    if canary := _taking_over(view):
        err().print(_beside(view, canary, "--at-once"), soft_wrap=True, markup=False)
    output.print(view, _summary([view]))
    _refuse_unplaceable([view])


@app.command
def explain(name: str, *, output: Output = DEFAULT) -> None:
    """Say why each replica is where it is, and what keeps more off the other nodes."""
    why = Api("scheduler").get(f"{_DEPLOYMENTS}/{segment(name)}/explain")
    if output.json:
        output.print(why, "")
        return
    output.print(why, standing(why))
    places = [
        [
            show_node(one["node"]),
            one["verdict"],
            f"{show_amount(one['energy_nanos_per_h'])}/h",
            f"{one['loading_s']} s" if one["loading_s"] else "",
            f"{one['cheaper_with_room']} of {one['cheaper_places']}",
            one["reason"],
        ]
        for one in why["places"]
    ]
    columns = ["NODE", "VERDICT", "POWER>", "LOADS>", "CHEAPER, WITH ROOM>", "REASON"]
    output.print(why, table(columns, places, title="\nReplicas", empty="no replicas"))
    hindered = [
        [one["nodes"], one["obstacle"], show_node(one["example"])] for one in why["hindrances"]
    ]
    columns = ["NODES>", "WHAT KEEPS ONE MORE OFF", "FOR EXAMPLE"]
    nothing = "\nnothing keeps one more off any node"
    output.print(why, table(columns, hindered, title="\nOther nodes", empty=nothing))


def replica_rows(states: list[Json]) -> list[list[str]]:
    """Node, state, reason of each replica; those that are alike and have no node in one row."""
    alike = Counter((show_node(one["node"]), one["state"], one["reason"]) for one in states)
    return [
        [node or ("-" if count == 1 else f"- ({count} replicas)"), state, reason]
        for (node, state, reason), count in alike.items()
    ]


def _scaling(view: Json) -> str:
    bounds = f"{view['replicas']} to {view['max_replicas']}"
    return f"demand asks for {view['wanted_replicas']} ({bounds} are allowed): {view['scaling']}"


def _rollout(rollout: Json) -> list[str]:
    canary, back = rollout["canary"], rollout["rolled_back"]
    lines = list[str]()
    if canary:
        lines.append(
            f"version {canary['bundle_version']} ({show_digest(canary['bundle'])}) is "
            f"{canary['phase']} with {canary['percent']} % of the requests: {canary['reason']}"
        )
    if back:
        lines.append(_rolled_back(back))
    return lines


def _rolled_back(back: Json) -> str:
    return f"version {show_digest(back['bundle'])} was rolled back: {back['reason']}"


def standing(why: Json) -> str:
    """What a deployment comes to, in sentences."""
    placed = f"{why['placed']} of {why['wanted']} replicas have a place"
    left = f"{why['survivors']} are left when a site is lost"
    lines = [
        f"{why['name']}: {placed}, {why['promised']} are promised, {left}",
        f"one more would fit on {why['open_nodes']} nodes",
    ]
    if why["scaling"]:
        lines.append(f"demand asks for {why['wanted']}: {why['scaling']}")
    if why["rollout"]:
        lines.append(f"a new version is on trial: {why['rollout']}")
    if why["revenue_nanos_per_h"]:
        lines.append(f"brings in {show_amount(why['revenue_nanos_per_h'])} an hour")
    lines += [f"not placed: {reason}" for reason in why["unplaced"]]
    lines += [f"can never be placed: {why['never']}"] if why["never"] else []
    lines += [
        f"kept off {show_node(one['node'])} for {one['for_s']} s more: {one['reason']}"
        for one in why["kept_off"]
    ]
    if back := why["rolled_back"]:
        lines.append(_rolled_back(back))
    return "\n".join(lines)


def _tenant_ids(file: Path, declared: list[Declared]) -> dict[str, str]:
    """The id of every tenant the file names, before anything is declared.

    A deployment that is open to a tenant nobody knows would be open to nobody.
    """
    named = sorted({tenant for one in declared for tenant in one.tenants})
    try:
        return {tenant: find_tenant(tenant)["tenant_id"] for tenant in named}
    except CommandError as error:
        status = Exit.USAGE if error.exit_status is Exit.NOT_FOUND else error.exit_status
        raise CommandError(f"{file}: {error.message}", status) from error


def _bundle(one: Declared, *, approve: bool, show_progress: bool) -> str | None:
    if one.path is None:
        return one.bundle
    from busbar_cli.commands.models import push_directory  # noqa: PLC0415  # as in main

    return push_directory(one.path, approve=approve, show_progress=show_progress)["digest"]


def _body(one: Declared, bundle: str | None, tenant_ids: dict[str, str]) -> Json:
    body: Json = {
        "bundle": bundle,
        "replicas": one.replicas,
        "survives_site_loss": one.survives_site_loss,
        "per_site_max": one.per_site_max,
        "per_feeder_max": one.per_feeder_max,
        "max_replicas": one.max_replicas,
        "scale_down_after_s": one.scale_down_after_s,
        "value_nanos_per_request": int(one.value_per_request * NANOS),
    }
    named = {
        "regions": one.regions,
        "tenants": [tenant_ids[tenant] for tenant in one.tenants],
        "pins": [show_node(pin) for pin in one.pins],
    }
    body.update({name: value for name, value in named.items() if value})
    if one.rollout is not None:
        body["rollout"] = one.rollout.model_dump(exclude_none=True)
    if one.at_once:
        body["at_once"] = True
    return body


def _check(bodies: dict[str, Json]) -> None:
    """Raise CommandError with everything that would be refused, before anything is declared."""
    refused = list[CommandError]()
    for name, body in bodies.items():
        try:
            Api("scheduler").post(f"{_DEPLOYMENTS}/{name}/check", body)
        except CommandError as error:
            if error.exit_status is Exit.UNAVAILABLE:
                raise
            refused.append(_refusal(name, error))
    if refused:
        said = "\n".join(one.message for one in refused)
        raise CommandError(f"{said}\nNothing was declared.", refused[0].exit_status)


def _declare(bodies: dict[str, Json]) -> list[Json]:
    """Declare all, and what was answered; who fails on the way says what stands already."""
    names, answers = list(bodies), list[Json]()
    for at, name in enumerate(names):
        try:
            answers.append(Api("scheduler").put(f"{_DEPLOYMENTS}/{name}", bodies[name]))
        except CommandError as error:
            refused = _refusal(name, error)
            done, left = ", ".join(names[:at]) or "none", ", ".join(names[at + 1 :]) or "none"
            raise CommandError(
                f"{refused.message}\nDeclared before it: {done}. Not tried: {left}.",
                refused.exit_status,
            ) from error
    return answers


def remarks(declared: list[Declared], before: list[Json], after: list[Json]) -> list[str]:
    """What was taken as it was said, and may not have been meant."""
    has = {one["name"]: one for one in after}
    given_up = {
        back["bundle"]: (one["name"], back["reason"])
        for one in before
        if (back := one["rollout"]["rolled_back"])
    }
    lines = list[str]()
    for one in declared:
        view = has[one.name]
        canary, begun = view["rollout"]["canary"], _taking_over(view)
        took = canary["bundle"] if canary and (begun or one.rollout) else view["bundle"]
        if one.bundle == view["bundle_name"] and took in given_up:
            where, reason = given_up[took]
            lines.append(
                f"{one.name}: the newest {one.bundle} is {show_digest(took)}, which was rolled "
                f"back from {where} ({brief(reason)}); for another say its digest, as in busbar "
                "model list"
            )
        if begun and one.rollout is None:
            lines.append(_beside(view, begun, "at_once: true"))
    return lines


def _taking_over(view: Json) -> Json | None:
    """The version that is to take over; None where there is none, or it was given up."""
    canary = view["rollout"]["canary"]
    return canary if canary and canary["phase"] != _LEAVING else None


def _beside(view: Json, canary: Json, at_once: str) -> str:
    return (
        f"{view['name']}: {show_digest(view['bundle'])} serves until "
        f"{show_digest(canary['bundle'])} is ready beside it; where there is no room for both: "
        f"{at_once}"
    )


def _refusal(name: str, error: CommandError) -> CommandError:
    # A bundle that is not there is the file's mistake, not a thing that was looked for.
    status = Exit.FAILED if error.exit_status is Exit.NOT_FOUND else error.exit_status
    said = error.message.removeprefix(f"{name}: ")
    return CommandError(f"{name}: {said}", status)


def _refuse_held_back(file: Path, answers: list[Json]) -> None:
    """Raise CommandError where another version serves on than was declared."""
    held = [
        f"{one['name']}: {show_digest(one['bundle'])} serves on: the version declared was rolled "
        f"back on the same terms: {one['held_back']}"
        for one in answers
        if one.get("held_back")
    ]
    if held:
        raise CommandError("\n".join([*held, f"To try it once more: busbar deploy {file} --again"]))


def _refuse_unplaceable(views: list[Json]) -> None:
    """Raise CommandError with the reason of each that can never fit, though it is declared."""
    never = [
        f"{one['name']}: {one['reason']}" for one in views if one["status"] == "unplaceable"
    ] + [
        f"{one['name']}: {show_digest(canary['bundle'])} can never take over: {canary['never']}"
        for one in views
        if (canary := _taking_over(one)) and canary.get("never")
    ]
    if never:
        raise CommandError("; ".join(never))


def _views(names: list[str]) -> list[Json]:
    views = {one["name"]: one for one in Api("scheduler").get(_DEPLOYMENTS)["items"]}
    gone = [name for name in names if name not in views]
    if gone:
        raise CommandError(f"{', '.join(gone)} was withdrawn meanwhile", Exit.NOT_FOUND)
    return [views[name] for name in names]


def _summary(views: list[Json]) -> object:
    columns = ["NAME", "BUNDLE", "DIGEST", "READY>", "STATUS", "WHERE", "REASON"]
    rows = [
        [
            one["name"],
            f"{one['bundle_name']} {one['bundle_version']}",
            show_digest(one["bundle"]),
            f"{one['ready_replicas']}/{one['wanted_replicas']}",
            one["status"],
            ", ".join(sorted(show_node(at["node"]) for at in one["replica_states"] if at["node"])),
            brief(one["reason"]),
        ]
        for one in views
    ]
    return table(columns, rows, empty="no deployments: declare some with busbar deploy FILE")
