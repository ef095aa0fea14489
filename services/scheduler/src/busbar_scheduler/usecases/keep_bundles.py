"""Which bundles are in use; removing one that is not, and sweeping what is left of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from busbar_contracts.scheduler.v1.bundle_pb2 import BundleContents, SealedBundle
from busbar_errors import Conflict, NotFound, Rejected, Unavailable
from busbar_messaging.bundles.contents import digest_of, object_names, read_contents

from busbar_scheduler.domain.fleet import Bundle, Deployment, Placements
from busbar_scheduler.domain.sweeping import Ages, Inventory, Stored, Sweep, forsaken, sweep
from busbar_scheduler.usecases.ports import Declarations, ModelStore

log = structlog.get_logger()


class InUse(Protocol):
    """What names bundles."""

    @property
    def missing(self) -> list[str]:
        """Why the picture is not current; empty when it is."""
        ...

    def declared(self) -> tuple[Deployment, ...]:
        """Every deployment."""
        ...

    def placements(self) -> Placements:
        """What each node was told to hold."""
        ...


class Stock(Protocol):
    """The model store as a whole. What was written since `Stored` was read stays as it is."""

    async def inventory(self) -> Inventory:
        """Everything that is in it."""
        ...

    async def condemn(self, one: Stored) -> None:
        """Let it count as absent for whoever pushes."""
        ...

    async def spare(self, one: Stored) -> None:
        """Let it count again."""
        ...

    async def delete(self, one: Stored) -> None:
        """Delete it for good."""
        ...

    async def delete_content(self, content: str) -> None:
        """Delete content that belongs to no object."""
        ...


def uses(in_use: InUse) -> dict[str, list[str]]:
    """What keeps bundles from being removed, in words, by digest."""
    found = dict[str, list[str]]()
    for one in sorted(in_use.declared(), key=lambda one: one.name):
        for digest in sorted(one.digests):
            tried = one.canary is not None and one.canary.digest == digest
            back = "is rolled out with it" if tried else "may go back to it"
            how = "serves it" if digest == one.digest else back
            found.setdefault(digest, []).append(f"deployment {one.name} {how}")
    holders = dict[str, list[str]]()
    for node, held in in_use.placements().items():
        for digest in {one.digest for one in held} - found.keys():
            holders.setdefault(digest, []).append(node)
    for digest, nodes in holders.items():
        found[digest] = [f"{len(nodes)} nodes still hold it, {min(nodes)} for one"]
    return found


async def remove(declarations: Declarations, in_use: InUse, digest: str) -> Bundle:
    """Forget a bundle; raises NotFound, Conflict while it is used, and Unavailable.

    Its chunks stay until a sweep finds them unused.
    """
    if in_use.missing:
        raise Unavailable(f"it is not known what uses bundles: {in_use.missing[0]}")
    found = next((one for one in declarations.bundles() if one.digest == digest), None)
    if found is None:
        raise NotFound(f"no bundle has the digest {digest}")
    if reasons := uses(in_use).get(digest):
        raise Conflict(f"{found.manifest.name} {found.manifest.version}: {'; '.join(reasons)}")
    await declarations.delete_bundle(digest)
    log.info("bundle removed", bundle=found.manifest.name, digest=digest)
    return found


@dataclass(frozen=True, slots=True)
class Sweeper:
    """Sweeps what no bundle consists of any more. Any number may do it at a time."""

    stock: Stock
    store: ModelStore
    declarations: Declarations
    in_use: InUse
    ages: Ages
    _names: dict[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    """Objects of each bundle; what a digest stands for never changes."""
    _unclaimed_since_ms: dict[str, int] = field(default_factory=dict[str, int])

    async def sweep(self, *, dry_run: bool = False) -> tuple[Sweep, list[str]]:
        """What becomes of each object, and unclaimed contents that go; nothing on a dry run.

        Raises Unavailable when it cannot be known what is used, and deletes nothing then.
        """
        # The stock first: what is noted after it was taken is not in it, or spares what is.
        inventory = await self.stock.inventory()
        decided = sweep(inventory, await self._used(), self.ages)
        contents = forsaken(
            inventory.unclaimed, self._unclaimed_since_ms, inventory.now_unix_ms, self.ages
        )
        if not dry_run:
            await self._carry_out(decided, contents)
        return decided, contents

    async def _carry_out(self, decided: Sweep, contents: list[str]) -> None:
        for one in decided.spare:
            await self.stock.spare(one)
        for one in decided.delete:
            await self.stock.delete(one)
        for one in decided.condemn:
            await self.stock.condemn(one)
        for content in contents:
            await self.stock.delete_content(content)
        if decided.spare or decided.delete or decided.condemn or contents:
            log.info(
                "model store swept",
                deleted=len(decided.delete),
                deleted_bytes=sum(one.size_bytes for one in decided.delete),
                condemned=len(decided.condemn),
                spared=len(decided.spare),
                unclaimed=len(contents),
            )

    async def _used(self) -> frozenset[str]:
        """Names of all objects that some bundle in use consists of."""
        if self.in_use.missing:
            raise Unavailable(f"it is not known what is used: {self.in_use.missing[0]}")
        digests = {one.digest for one in self.declarations.bundles()}
        digests.update(*(one.digests for one in self.in_use.declared()))
        digests.update(one.digest for held in self.in_use.placements().values() for one in held)
        for forgotten in self._names.keys() - digests:
            del self._names[forgotten]
        for digest in sorted(digests - self._names.keys()):
            self._names[digest] = await self._names_of(digest)
        return frozenset().union(*self._names.values())

    async def _names_of(self, digest: str) -> frozenset[str]:
        try:
            return object_names(digest, _listed(digest, await self.store.bundle(digest)))
        except (NotFound, Rejected) as error:
            raise Unavailable(
                f"the list of chunks of {digest} cannot be read: {error.reason}; "
                f"push it again, or remove it"
            ) from error


def _listed(digest: str, sealed: SealedBundle) -> BundleContents:
    if (actual := digest_of(sealed.contents)) != digest:
        raise Rejected(f"what is stored has another digest: {actual}")
    return read_contents(sealed.contents, sys.maxsize)
