"""Declaring and withdrawing deployments."""

from __future__ import annotations

from dataclasses import dataclass

from busbar_errors import Conflict, NotFound

from busbar_scheduler.domain.fleet import Bundle, Deployment
from busbar_scheduler.usecases.ports import Declarations

_ATTEMPTS_MAX = 5


@dataclass(frozen=True, slots=True)
class Wish:
    """What an operator asks for."""

    name: str
    bundle: str
    """Digest ("sha256:…" or the bare digits), or a bundle's name for its newest."""
    replicas: int
    regions: tuple[str, ...]
    tenants: tuple[str, ...]


def find_bundle(bundles: tuple[Bundle, ...], wanted: str) -> Bundle:
    """The bundle of a digest, or the newest of a name; raises NotFound."""
    digest = wanted if wanted.startswith("sha256:") else f"sha256:{wanted}"
    by_digest = [one for one in bundles if one.digest == digest]
    named = by_digest or [one for one in bundles if one.manifest.name == wanted]
    if not named:
        raise NotFound(
            f"no bundle {wanted!r} has been pushed; push it first: busbar model push DIR"
        )
    return max(named, key=lambda one: (one.pushed_unix_ms, one.digest))


async def declare(declarations: Declarations, wish: Wish, now_unix_ms: int) -> Deployment:
    """Create or change a deployment; the last writer wins. Raises NotFound for its bundle."""
    bundle = find_bundle(declarations.bundles(), wish.bundle)
    for attempt in range(1, _ATTEMPTS_MAX + 1):
        before = declarations.deployment(wish.name)
        deployment = Deployment(
            name=wish.name,
            digest=bundle.digest,
            manifest=bundle.manifest,
            replicas=wish.replicas,
            regions=wish.regions,
            tenants=wish.tenants,
            created_unix_ms=before.created_unix_ms if before else now_unix_ms,
        )
        if deployment == before:
            return deployment
        try:
            await declarations.put_deployment(deployment)
        except Conflict:
            if attempt == _ATTEMPTS_MAX:
                raise
        else:
            return deployment
    raise AssertionError("unreachable")


async def withdraw(declarations: Declarations, name: str) -> None:
    """Withdraw a deployment; raises NotFound when there is none."""
    if declarations.deployment(name) is None:
        raise NotFound(f"no deployment is called {name!r}")
    await declarations.delete_deployment(name)
