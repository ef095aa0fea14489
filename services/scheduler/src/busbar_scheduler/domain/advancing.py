"""The next step of a rollout: on, back, or as it stands."""

from __future__ import annotations

from dataclasses import dataclass, replace

from busbar_scheduler.domain.comparing import worse
from busbar_scheduler.domain.fleet import Bundle, Deployment
from busbar_scheduler.domain.manifest import Manifest, prepared_otherwise
from busbar_scheduler.domain.rollouts import (
    HALF_PERCENT,
    Canary,
    Phase,
    RolledBack,
    Rollout,
    track_of,
)
from busbar_scheduler.domain.watching import Sight

_LEAVES_WITHIN_MS = 10_000
"""What is on its way to a version that takes nothing more gets there within this."""
_NAME_CHARS_MAX = 63
_MS_PER_S = 1000
_ALL_PERCENT = 100


@dataclass(frozen=True, slots=True)
class Step:
    """What to do and why; `deployment` is as before when there is nothing to do."""

    deployment: Deployment
    reason: str


def advance(deployment: Deployment, sight: Sight, now_unix_ms: int) -> Step:
    """Decide about a deployment with a version on trial."""
    canary = deployment.canary
    if canary is None:
        return Step(deployment, "")
    if canary.phase is Phase.LEAVING:
        return _left(deployment, canary, sight, now_unix_ms)
    if not deployment.most:
        step = _moved(deployment, Phase.LEAVING, canary.percent, now_unix_ms)
        return Step(step, "the deployment was stopped")
    if canary.phase is Phase.SETTLING:
        return _settled(deployment, canary, sight, now_unix_ms)
    return _tried(deployment, canary, sight, now_unix_ms)


def _left(deployment: Deployment, canary: Canary, sight: Sight, now_unix_ms: int) -> Step:
    elapsed_ms = now_unix_ms - canary.since_unix_ms
    if elapsed_ms < _LEAVES_WITHIN_MS:
        return Step(deployment, "it finishes what it has in hand")
    if deployment.most and not sight.standing.ready and elapsed_ms < _patience_ms(deployment):
        return Step(deployment, "it serves until the version that stays is ready")
    return Step(replace(deployment, canary=None), "it left")


def _settled(deployment: Deployment, canary: Canary, sight: Sight, now_unix_ms: int) -> Step:
    there = sight.standing
    counted = f"{there.ready} of {there.wanted} replicas have it now"
    if there.complete:
        return Step(_moved(deployment, Phase.LEAVING, _ALL_PERCENT, now_unix_ms), counted)
    if there.ready and now_unix_ms - canary.since_unix_ms >= _patience_ms(deployment):
        late = f"{counted}, and the others were not ready in time"
        return Step(_moved(deployment, Phase.LEAVING, _ALL_PERCENT, now_unix_ms), late)
    return Step(deployment, f"it serves everything until all replicas have it: {counted}")


def _patience_ms(deployment: Deployment) -> int:
    return (deployment.rollout or Rollout()).ready_within_s * _MS_PER_S


def _tried(deployment: Deployment, canary: Canary, sight: Sight, now_unix_ms: int) -> Step:
    terms = deployment.rollout or Rollout()
    if deployment.rollout and (reason := worse(sight.canary, sight.stable, terms)):
        return Step(give_up(deployment, reason, now_unix_ms), reason)
    if not sight.canary_ready:
        if sight.unready_s < terms.ready_within_s:
            return Step(deployment, f"not ready: {sight.missing}")
        reason = f"not ready for {terms.ready_within_s} s: {sight.missing}"
        return Step(give_up(deployment, reason, now_unix_ms), reason)
    if canary.phase is Phase.TAKING_OVER:
        return Step(_taken_over(deployment, canary, now_unix_ms), "it has as many slots")
    return _observed(deployment, canary, terms, sight, now_unix_ms)


def _observed(
    deployment: Deployment, canary: Canary, terms: Rollout, sight: Sight, now_unix_ms: int
) -> Step:
    compared = (
        f"{sight.canary.failed} of its {sight.canary.count} requests failed, "
        f"{sight.stable.failed} of {sight.stable.count} of the version that serves"
    )
    fewest = min(sight.canary.count, sight.stable.count)
    if sight.observed_s < terms.observe_s or fewest < terms.min_samples:
        wanted = f"watched {sight.observed_s:.0f} of {terms.observe_s} s"
        return Step(deployment, f"{wanted}, {terms.min_samples} requests each at least: {compared}")
    if canary.percent < HALF_PERCENT:
        return Step(_moved(deployment, Phase.OBSERVING, HALF_PERCENT, now_unix_ms), compared)
    return Step(_moved(deployment, Phase.TAKING_OVER, HALF_PERCENT, now_unix_ms), compared)


def _moved(deployment: Deployment, phase: Phase, percent: int, now_unix_ms: int) -> Deployment:
    canary = deployment.canary
    if canary is None:
        return deployment
    moved = replace(canary, phase=phase, percent=percent, since_unix_ms=now_unix_ms)
    return replace(deployment, canary=moved)


def _taken_over(deployment: Deployment, canary: Canary, now_unix_ms: int) -> Deployment:
    return replace(
        _moved(deployment, Phase.SETTLING, canary.percent, now_unix_ms),
        digest=canary.digest,
        manifest=canary.manifest,
        previous_digest=deployment.digest,
    )


def give_up(deployment: Deployment, reason: str, now_unix_ms: int) -> Deployment:
    """Take the new version out of service, and remember it."""
    canary = deployment.canary
    if canary is None:
        return deployment
    left = _moved(deployment, Phase.LEAVING, canary.percent, now_unix_ms)
    return replace(left, rolled_back=RolledBack(canary.digest, reason, now_unix_ms))


def take_back(deployment: Deployment, stays: Bundle, reason: str, now_unix_ms: int) -> Deployment:
    """Go back to the bundle before, from one that has taken over and may not be everywhere yet.

    The new version goes on serving for as long as no replica with that bundle is ready.
    """
    canary = deployment.canary
    if canary is None:
        return deployment
    before = replace(deployment, digest=stays.digest, manifest=stays.manifest, previous_digest="")
    left = _moved(before, Phase.LEAVING, _ALL_PERCENT, now_unix_ms)
    return replace(left, rolled_back=RolledBack(canary.digest, reason, now_unix_ms))


def going_back(deployment: Deployment) -> bool:
    """Whether a version that was rolled back is on its way out."""
    canary, back = deployment.canary, deployment.rolled_back
    if canary is None or back is None:
        return False
    return back.digest in {canary.digest, deployment.digest, deployment.previous_digest}


def begin(
    before: Deployment | None,
    wished: Deployment,
    now_unix_ms: int,
    *,
    keep: bool,
    again: bool = False,
) -> Deployment:
    """What a declaration comes to, given what stands there.

    A new bundle with terms is tried beside the one that serves; it takes the place of one that
    is being tried. One that was given up on the same terms is not tried `again`, see `held_back`,
    unless an operator gave it up or asks for it. Without terms see `exchange`, also for `keep`.
    """
    if before is None:
        return wished
    trying = before.canary if before.canary and before.canary.phase is not Phase.LEAVING else None
    if wished.digest == before.digest:
        if trying is None or trying.phase is Phase.SETTLING:
            return replace(wished, canary=before.canary, rolled_back=before.rolled_back)
        left = replace(wished, canary=trying, rolled_back=before.rolled_back)
        return _moved(left, Phase.LEAVING, trying.percent, now_unix_ms)
    serving = replace(
        wished,
        digest=before.digest,
        manifest=before.manifest,
        previous_digest=before.previous_digest,
        canary=before.canary,
        rolled_back=before.rolled_back,
    )
    if wished.rollout is None:
        alone = replace(serving, rolled_back=None)
        return exchange(alone, wished.digest, wished.manifest, now_unix_ms, keep=keep)
    back = before.rolled_back
    known_bad = back is not None and back.digest == wished.digest and not back.by_hand
    if (trying and trying.digest == wished.digest) or (
        known_bad and not again and wished.rollout == before.rollout
    ):
        return serving
    percent = wished.rollout.canary_percent
    canary = Canary(wished.digest, wished.manifest, Phase.OBSERVING, percent, now_unix_ms)
    return replace(serving, canary=canary, rolled_back=None)


def held_back(deployment: Deployment, digest: str) -> str:
    """Why the version that was just declared is not tried; empty when it is, or serves.

    What is declared begins with a clean record, so whatever is still on it was not begun.
    """
    back = deployment.rolled_back
    if back is None or back.digest != digest or deployment.digest == digest:
        return ""
    return back.reason


def exchange(
    deployment: Deployment, digest: str, manifest: Manifest, now_unix_ms: int, *, keep: bool
) -> Deployment:
    """Change bundles without watching the new one: it takes over once it has as many slots.

    Until then it gets no requests, or the share that it had on trial. At once where the present
    one need not be kept, such as where none of its replicas serves.
    """
    if not (keep and deployment.most and _has_track(deployment.name)):
        changed = replace(
            deployment, digest=digest, manifest=manifest, previous_digest=deployment.digest
        )
        return _moved(changed, Phase.LEAVING, 1, now_unix_ms)
    canary = deployment.canary
    if canary is None or canary.phase is Phase.LEAVING or canary.digest != digest:
        canary = Canary(digest, manifest, Phase.TAKING_OVER, 0, now_unix_ms)
    elif canary.phase is Phase.OBSERVING:
        canary = replace(canary, phase=Phase.TAKING_OVER, since_unix_ms=now_unix_ms)
    return replace(deployment, canary=canary)


def _has_track(deployment: str) -> bool:
    return len(track_of(deployment)) <= _NAME_CHARS_MAX


def settling(before: Deployment | None, digest: str) -> str:
    """Why another bundle cannot be declared at this moment; empty when it can."""
    canary = before.canary if before else None
    if before is None or canary is None or canary.phase is not Phase.SETTLING:
        return ""
    if digest == before.digest:
        return ""
    return (
        f"{before.name} is just changing to the version that it was rolled out with; "
        "try again, or roll it back"
    )


def serving_alone(before: Deployment | None, after: Deployment, ready: int) -> str:
    """Why a declaration would end the only version that serves; empty when it does not.

    `ready` is how many replicas are so with the bundle that the deployment had before.
    """
    canary = before.canary if before else None
    if before is None or canary is None or canary.phase is not Phase.LEAVING:
        return ""
    stays = after.canary is not None and after.canary.digest == canary.digest
    if stays or ready or not before.most:
        return ""
    return (
        f"{before.name} is served by the version that leaves until the other is ready again, and a "
        "third would take its place: try again then, or declare it without a rollout"
    )


def cannot_share(before: Deployment | None, wished: Deployment) -> str:
    """Why two versions cannot serve beside each other; empty when they can."""
    if before is None or wished.rollout is None or wished.digest == before.digest:
        return ""
    if not _has_track(wished.name):
        return f"the name is too long for a rollout: {_NAME_CHARS_MAX - len(track_of(''))} at most"
    differing = prepared_otherwise(before.manifest, wished.manifest)
    if differing:
        return (
            f"the new version's {' and '.join(differing)} differ, and a request is prepared before "
            "its version is chosen: deploy it under another name, or without a rollout"
        )
    return ""
