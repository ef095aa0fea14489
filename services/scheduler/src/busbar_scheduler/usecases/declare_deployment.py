"""Declaring and withdrawing deployments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from busbar_errors import Conflict, NotFound, Rejected

from busbar_scheduler.domain.advancing import (
    begin,
    cannot_share,
    exchange,
    give_up,
    going_back,
    held_back,
    serving_alone,
    settling,
    take_back,
)
from busbar_scheduler.domain.explaining import bounds_crossed, contradictory
from busbar_scheduler.domain.fleet import SCALE_DOWN_AFTER_S, Bundle, Deployment
from busbar_scheduler.domain.rollout_news import news_of
from busbar_scheduler.domain.rollouts import (
    BY_HAND,
    TRACK_SUFFIX,
    Phase,
    RolledBack,
    Rollout,
    is_track,
)
from busbar_scheduler.usecases.ports import Announcements, Declarations

_ATTEMPTS_MAX = 5
_DIGITS_MIN = 12
"""As many digits of a digest as lists show."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What an operator asks for."""

    name: str
    bundle: str
    """Digest ("sha256:…" or the bare digits, the first 12 at least), or a bundle's name for its
    newest."""
    replicas: int
    regions: tuple[str, ...]
    tenants: tuple[str, ...]
    max_replicas: int = 0
    pins: tuple[str, ...] = ()
    per_site_max: int = 0
    per_feeder_max: int = 0
    survives_site_loss: bool = False
    value_nanos_per_request: int = 0
    scale_down_after_s: int = SCALE_DOWN_AFTER_S
    rollout: Rollout | None = None
    """None: a new bundle takes over, unwatched, when it is ready."""
    at_once: bool = False
    """A new bundle takes the place of the present one before it is ready itself."""
    again: bool = False
    """One that was given up on the same terms is tried once more."""


def find_bundle(bundles: tuple[Bundle, ...], wanted: str) -> Bundle:
    """The bundle of a digest, or the newest of a name; raises NotFound, and Rejected where the
    beginning of a digest is that of several."""
    digest = wanted if wanted.startswith("sha256:") else f"sha256:{wanted}"
    by_digest = [one for one in bundles if one.digest == digest]
    named = by_digest or [one for one in bundles if one.manifest.name == wanted]
    if not named and len(digest) >= len("sha256:") + _DIGITS_MIN:
        named = [one for one in bundles if one.digest.startswith(digest)]
        if len(named) > 1:
            raise Rejected(f"{len(named)} bundles' digests begin with {wanted!r}: say more of it")
    if not named:
        raise NotFound(
            f"no bundle {wanted!r} has been pushed; push it first: busbar model push DIR"
        )
    return max(named, key=lambda one: (one.pushed_unix_ms, one.digest))


def check(declarations: Declarations, wish: Wish, now_unix_ms: int) -> None:
    """Refuse what `declare` would refuse now, as it does; changes nothing."""
    change = _wished(declarations, wish, now_unix_ms)
    change(declarations.deployment(wish.name))


async def declare(
    declarations: Declarations, announcements: Announcements, wish: Wish, now_unix_ms: int
) -> Deployment:
    """Create or change a deployment; the last writer wins. See also `not_tried`.

    Raises NotFound for its bundle, Rejected when it asks for what no fleet could give, and
    Conflict while versions change in a way that has to end first.
    """
    change = _wished(declarations, wish, now_unix_ms)
    return await _roll(declarations, announcements, wish.name, change)


def not_tried(declarations: Declarations, wish: Wish, declared: Deployment) -> str:
    """Why the bundle that was just declared is not tried; empty when it is, or serves."""
    return held_back(declared, find_bundle(declarations.bundles(), wish.bundle).digest)


def _wished(
    declarations: Declarations, wish: Wish, now_unix_ms: int
) -> Callable[[Deployment | None], Deployment]:
    bundle = find_bundle(declarations.bundles(), wish.bundle)

    def wished(before: Deployment | None) -> Deployment:
        if reason := settling(before, bundle.digest):
            raise Conflict(reason)
        wanted = Deployment(
            name=wish.name,
            digest=bundle.digest,
            manifest=bundle.manifest,
            replicas=wish.replicas,
            regions=wish.regions,
            tenants=wish.tenants,
            created_unix_ms=before.created_unix_ms if before else now_unix_ms,
            max_replicas=wish.max_replicas,
            pins=wish.pins,
            per_site_max=wish.per_site_max,
            per_feeder_max=wish.per_feeder_max,
            survives_site_loss=wish.survives_site_loss,
            value_nanos_per_request=wish.value_nanos_per_request,
            previous_digest=_previous(before, bundle.digest),
            scale_down_after_s=wish.scale_down_after_s,
            rollout=wish.rollout,
        )
        if reason := cannot_share(before, wanted):
            raise Rejected(f"{wish.name}: {reason}")
        ready = declarations.ready(before) if before else 0
        keep = ready > 0 and not wish.at_once
        after = begin(before, wanted, now_unix_ms, keep=keep, again=wish.again)
        if reason := serving_alone(before, after, ready):
            raise Conflict(reason)
        return after

    if is_track(wish.name):
        raise Rejected(f"{wish.name}: names that end in {TRACK_SUFFIX} are taken by rollouts")
    _refuse_contradictions(wished(None))
    return wished


def _refuse_contradictions(wanted: Deployment) -> None:
    if contradiction := bounds_crossed(wanted) or contradictory(wanted):
        raise Rejected(f"{wanted.name}: {contradiction}")


def _previous(before: Deployment | None, digest: str) -> str:
    if before is None:
        return ""
    return before.previous_digest if before.digest == digest else before.digest


async def scale(
    declarations: Declarations, name: str, replicas: int, max_replicas: int | None
) -> Deployment:
    """Promise another number of replicas; raises NotFound, and Rejected as `declare` does."""

    def scaled(before: Deployment | None) -> Deployment:
        most = _there(before, name).max_replicas if max_replicas is None else max_replicas
        wanted = replace(_there(before, name), replicas=replicas, max_replicas=most)
        _refuse_contradictions(wanted)
        return wanted

    _, after = await _change(declarations, name, scaled)
    return after


async def roll_back(
    declarations: Declarations,
    announcements: Announcements,
    name: str,
    now_unix_ms: int,
    *,
    at_once: bool = False,
) -> Deployment:
    """Give up the version that is being tried or takes over, or go back to the bundle before.

    The present one serves until that is ready, unless it is to go `at_once`. Nothing changes where
    it is on its way back already. Raises NotFound, and Rejected when there was no other bundle or
    that one was rolled back itself.
    """

    def rolled_back(before: Deployment | None) -> Deployment:
        there = _there(before, name)
        phase = there.canary.phase if there.canary else None
        back = going_back(there)
        if back and not (at_once and phase is Phase.TAKING_OVER):
            return there
        if phase in {Phase.OBSERVING, Phase.TAKING_OVER} and not back:
            return give_up(there, BY_HAND, now_unix_ms)
        bundle = _before(declarations, there, at_once=at_once)
        if phase is Phase.SETTLING:
            return take_back(there, bundle, BY_HAND, now_unix_ms)
        keep = declarations.ready(there) > 0 and not at_once
        after = exchange(there, bundle.digest, bundle.manifest, now_unix_ms, keep=keep)
        return replace(after, rolled_back=RolledBack(there.digest, BY_HAND, now_unix_ms))

    return await _roll(declarations, announcements, name, rolled_back)


def _before(declarations: Declarations, there: Deployment, *, at_once: bool) -> Bundle:
    """The bundle that served before the present one."""
    found = [one for one in declarations.bundles() if one.digest == there.previous_digest]
    if not found:
        raise Rejected(f"{there.name} has had no other bundle to go back to")
    (bundle,), back = found, there.rolled_back
    if back and back.digest == bundle.digest and not at_once:
        version = f"{bundle.manifest.name} {bundle.manifest.version}"
        raise Rejected(
            f"{there.name} was served by {version} before, which was rolled back ({back.reason}): "
            "declare that to have it again, or another one"
        )
    return bundle


def _there(deployment: Deployment | None, name: str) -> Deployment:
    if deployment is None:
        raise NotFound(f"no deployment is called {name!r}")
    return deployment


async def _roll(
    declarations: Declarations,
    announcements: Announcements,
    name: str,
    change: Callable[[Deployment | None], Deployment],
) -> Deployment:
    before, after = await _change(declarations, name, change)
    if moved := news_of(before, after):
        await announcements.rollout_moved(moved)
    return after


async def _change(
    declarations: Declarations, name: str, change: Callable[[Deployment | None], Deployment]
) -> tuple[Deployment | None, Deployment]:
    """Change what stands there, again when somebody else was faster; before and after."""
    for attempt in range(1, _ATTEMPTS_MAX + 1):
        before = declarations.deployment(name)
        deployment = change(before)
        if deployment == before:
            return before, deployment
        try:
            await declarations.put_deployment(deployment)
        except Conflict:
            if attempt == _ATTEMPTS_MAX:
                raise
        else:
            return before, deployment
    raise AssertionError("unreachable")


async def withdraw(declarations: Declarations, name: str) -> None:
    """Withdraw a deployment; raises NotFound when there is none."""
    _there(declarations.deployment(name), name)
    await declarations.delete_deployment(name)
