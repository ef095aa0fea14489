"""busbar audit and leakage: whether the books are right, and what was worked for nothing."""

from __future__ import annotations

import time
from collections import Counter

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from busbar_cli.api import Api, Json, Listed
from busbar_cli.commands.tenants import find_tenant
from busbar_cli.failures import CommandError, Exit
from busbar_cli.output import DEFAULT, HowMany, Output, err, show_moment, show_node, table

_AUDITS = "/admin/v1/audits"
_POLL_S = 0.2


def audit(*, full: bool = False, known: bool = False, output: Output = DEFAULT) -> None:
    """Recompute the books; exit status 1 when anything is not as it must be.

    Lists each check, how many rows it looked at, and what it found by name. What an earlier audit
    found in order, and sealed, is only compared with its seals.

    Parameters
    ----------
    full
        Take no seal for granted: begin at zero.
    known
        Only show what the audit that never ends has found until now.
    """
    api = Api("billing")
    if known:
        _show_known(api.get(_AUDITS), output)
        return
    found = _wait(api, api.post(f"{_AUDITS}?full=true" if full else _AUDITS, {}))
    if found["state"] != "finished":
        raise CommandError(f"the audit was not finished: {found['reason']}", Exit.UNAVAILABLE)
    rows = [
        [
            one["check"].replace("_", " "),
            "ok" if not one["breaches_total"] else "failed",
            f"{one['rows']:,}",
            f"{one['breaches_total']:,}",
            one["says"],
        ]
        for one in found["checks"]
    ]
    output.print(found, table(["CHECK", "STATE", "ROWS>", "BREACHES>", "WHAT HOLDS"], rows))
    if not output.json:
        _show_seals(found, output)
    if found["leaked_attempts"] and not output.json:
        energy = joules(found["leaked_energy_mj"] or None)
        said = f"{found['leaked_attempts']:,} attempts brought nothing in, energy: {energy}"
        output.print(found, f"{said}: busbar leakage lists them")
    if found["clean"]:
        return
    if not output.json:
        listed = [
            [one["check"].replace("_", " "), breach["subject"], breach["detail"]]
            for one in found["checks"]
            for breach in one["breaches"]
        ]
        output.print(found, table(["CHECK", "WHICH", "WHAT IS WRONG"], listed))
    raise CommandError(f"{found['breaches_total']} breaches: the books are not right")


def _show_seals(found: Json, output: Output) -> None:
    if found["seals_broken"]:
        said = "rows that were audited before have changed since: everything was read from zero"
        output.print(found, said)
    elif found["unchanged_rows"]:
        said = f"{found['unchanged_rows']:,} rows are sealed and as an earlier audit found them"
        output.print(found, f"{said}: busbar audit --full reads them again")


def _show_known(standing: Json, output: Output) -> None:
    listed = [
        [
            show_moment(one["found_at"]),
            one["check"].replace("_", " "),
            one["subject"],
            one["detail"],
        ]
        for one in standing["breaches"]
    ]
    columns = ["FOUND", "CHECK", "WHICH", "WHAT IS WRONG"]
    output.print(standing, table(columns, listed, empty="nothing is known to be wrong"))
    if not output.json:
        followed = "not yet"
        if standing["followed_to"]:
            followed = f"{show_moment(standing['followed_to'])}, {standing['lag_s']:.0f} s ago"
        swept = show_moment(standing["swept_at"]) or "not yet"
        output.print(standing, f"all checked up to {followed}; from zero at {swept}")
    if listed:
        raise CommandError(f"{len(listed)} breaches: the books are not right")


def _wait(api: Api, run: Json) -> Json:
    """Look until it is done, showing how far it is where somebody watches."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeElapsedColumn(),
    )
    console = err()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("auditing")
        while run["state"] == "running":
            bar.update(
                task,
                description=(run["doing"] or "auditing").replace("_", " "),
                total=run["rows_expected"] or None,
                completed=run["rows"],
            )
            time.sleep(_POLL_S)
            run = api.get(f"{_AUDITS}/{run['audit_id']}")
    return run


def leakage(
    *,
    tenant: str | None = None,
    since: str | None = None,
    until: str | None = None,
    limit: HowMany = 50,
    output: Output = DEFAULT,
) -> None:
    """List attempts that were worked and brought nothing in, newest first.

    Parameters
    ----------
    tenant
        Id or name.
    since
        RFC 3339 time with zone.
    until
        RFC 3339 time with zone; a minute ago when left out, as what is younger may be charged yet.
    limit
        How many at most.
    """
    tenant_id = find_tenant(tenant)["tenant_id"] if tenant is not None else None
    query = {"tenant_id": tenant_id, "since": since, "until": until}
    found = Api("billing").listed("/admin/v1/leakage", limit, **query)
    rows = [
        [
            show_moment(one["ended_at"]),
            one["request_id"],
            one["attempt"],
            one["reason"].replace("_", " "),
            one["tenant_id"],
            one["deployment"],
            show_node(one["node"]),
            f"{one['compute_us'] / 1_000:.1f}",
            joules(one["energy_mj"]),
        ]
        for one in found.items
    ]
    columns = ["ENDED", "REQUEST", "ATTEMPT>", "WHY", "TENANT", "DEPLOYMENT", "NODE"]
    columns += ["COMPUTE ms>", "ENERGY>"]
    output.print_list(found, table(columns, rows, empty="nothing was worked for nothing"))
    if not output.json and found.items:
        output.print(found, why_nothing(found))


def joules(energy_mj: int | None) -> str:
    """What was measured; None where no counter was."""
    return "not measured" if energy_mj is None else f"{energy_mj / 1_000:,.1f} J"


def why_nothing(found: Listed) -> str:
    """How many attempts are listed, by what became of them."""
    reasons = Counter(one["reason"].replace("_", " ") for one in found.items)
    counted = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    said = f"{len(found.items):,} attempts: {counted}"
    return f"the newest {said}; there are more" if found.more else said
