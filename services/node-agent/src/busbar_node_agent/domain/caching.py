"""Which cached bundles go when the cache gets too large."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cached:
    """A bundle in the cache; files that several bundles have are there once."""

    digest: str
    used_at_s: float
    files: Mapping[str, int]
    """Bytes of each file by its key."""


def bytes_of(cached: Iterable[Cached]) -> int:
    """Bytes that these bundles take together."""
    files = dict[str, int]()
    for bundle in cached:
        files.update(bundle.files)
    return sum(files.values())


def evictions(
    cached: Sequence[Cached],
    pinned: Collection[str],
    *,
    bytes_max: int,
    bytes_to_free: int = 0,
) -> tuple[str, ...]:
    """The digests to let go, least recently used first and none that is pinned.

    As many as it takes until the rest has at most `bytes_max` and `bytes_to_free` are freed; all
    that may go when even that is not enough.
    """
    before = bytes_of(cached)
    target = min(bytes_max, before - bytes_to_free)
    rest = {bundle.digest: bundle for bundle in cached}
    gone = list[str]()
    for bundle in sorted(cached, key=lambda one: (one.used_at_s, one.digest)):
        if bytes_of(rest.values()) <= target:
            break
        if bundle.digest not in pinned:
            del rest[bundle.digest]
            gone.append(bundle.digest)
    return tuple(gone)
