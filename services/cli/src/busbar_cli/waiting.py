"""Waiting for deployments, and knowing when waiting is of no use."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.text import Text

from busbar_cli.api import Json
from busbar_cli.failures import CommandError, Exit
from busbar_cli.output import brief, err

_POLL_S = 0.25
_FAILED = "failed"
_DONE = {"ready", "stopped", "asleep"}
_HOPELESS_AFTER_S = {"unplaceable": 10.0, "failing": 20.0}
"""How long a state may last before it counts: nodes may still be coming, loads are retried."""


@dataclass(slots=True)
class Patience:
    """How long we wait, for all and for each."""

    started_at: float
    timeout_s: float
    _since: dict[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])
    _tried: dict[str, str] = field(default_factory=dict[str, str])
    """Deployment → the bundle that was on trial."""

    def hopeless(self, views: list[Json], now: float) -> str:
        """Why it makes no sense to go on; empty when it does."""
        present = {(one["name"], one["status"]): one for one in views}
        self._since = {key: self._since.get(key, now) for key in present}
        for (name, status), view in present.items():
            longest_s = _HOPELESS_AFTER_S.get(status)
            if longest_s is not None and now - self._since[name, status] >= longest_s:
                return f"{name} is {status}: {view['reason']}"
        return ""

    def rolled_back(self, views: list[Json]) -> str:
        """Why a version that was on trial while we waited was given up; empty when none was."""
        for one in views:
            canary, back = one["rollout"]["canary"], one["rollout"]["rolled_back"]
            if canary:
                self._tried[one["name"]] = canary["bundle"]
            if back and self._tried.get(one["name"]) == back["bundle"]:
                return f"{one['name']} was rolled back: {back['reason']}"
        return ""

    def over(self, now: float) -> bool:
        """Whether the time is up."""
        return now - self.started_at >= self.timeout_s


def wait_until_ready(look: Callable[[], list[Json]], patience: Patience) -> list[Json]:
    """Look until everything is ready; raises CommandError when it will not be."""
    console, last = err(), ""
    with console.status("waiting") as spinner:
        while True:
            views = look()
            line = _line(views)
            if line != last:
                last = line
                spinner.update(Text(line))
                if not console.is_terminal:
                    console.print(Text(line), soft_wrap=True)
            if reason := patience.rolled_back(views):
                raise CommandError(reason)
            if all(one["status"] in _DONE and not one["rollout"]["canary"] for one in views):
                return views
            now = time.monotonic()
            if reason := patience.hopeless(views, now):
                raise CommandError(reason)
            if patience.over(now):
                raise CommandError(
                    f"not ready after {patience.timeout_s:g} s: {line}{_reasons(views)}",
                    Exit.UNAVAILABLE,
                )
            time.sleep(_POLL_S)


def _reasons(views: list[Json]) -> str:
    return "".join(
        f"\n{one['name']}: {one['reason']}" for one in views if one["status"] in _HOPELESS_AFTER_S
    ) + "".join(
        f"\n{one['name']}: its new version is {canary['phase']}: {canary['reason']}"
        for one in views
        if (canary := one["rollout"]["canary"])
    )


def _line(views: list[Json]) -> str:
    ready = sum(one["ready_replicas"] for one in views)
    wanted = sum(one["wanted_replicas"] for one in views)
    waiting = [_doing(one) for one in views if one["status"] not in _DONE]
    waiting += [
        f"{one['name']} {canary['phase']} with {canary['percent']} %"
        for one in views
        if (canary := one["rollout"]["canary"])
    ]
    return f"{ready} of {wanted} replicas ready" + (f"; {', '.join(waiting)}" if waiting else "")


def _doing(view: Json) -> str:
    states = sorted({at["state"] for at in view["replica_states"] if at["state"] != "ready"})
    said = f"{view['name']} {'/'.join(states) or view['status']}"
    failed = [at["reason"] for at in view["replica_states"] if at["state"] == _FAILED]
    reasons = dict.fromkeys(brief(reason) for reason in failed if reason)
    return f"{said} ({'; '.join(reasons)})" if reasons else said
