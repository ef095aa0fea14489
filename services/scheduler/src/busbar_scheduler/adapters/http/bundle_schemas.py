"""Bodies of the admin API of bundles."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field

from busbar_scheduler.domain.fleet import Bundle
from busbar_scheduler.domain.sweeping import Stored, Sweep


class BundleView(BaseModel):
    """A pushed bundle."""

    digest: str
    name: str
    version: str
    task: str
    slots: int
    memory_mib: int
    price_class: str
    size_bytes: int
    pushed_unix_ms: int
    uses: list[str] = Field(description="what keeps it from being removed")

    @classmethod
    def of(cls, bundle: Bundle, uses: list[str]) -> BundleView:
        """As the API shows it."""
        manifest = bundle.manifest
        return cls(
            digest=bundle.digest,
            name=manifest.name,
            version=manifest.version,
            task=str(manifest.task),
            slots=manifest.slots,
            memory_mib=manifest.memory_mib,
            price_class=manifest.price_class,
            size_bytes=bundle.size_bytes,
            pushed_unix_ms=bundle.pushed_unix_ms,
            uses=uses,
        )


class BundleList(BaseModel):
    """Every pushed bundle, newest first."""

    items: list[BundleView]
    bundle_bytes_max: int = Field(description="how large one may be that is pushed")


class SweepBody(BaseModel):
    """Whether to sweep or only to look."""

    model_config = ConfigDict(extra="forbid")

    dry_run: bool = False


class Amount(BaseModel):
    """Some objects of the model store."""

    objects: int
    bytes: int

    @classmethod
    def of(cls, found: Iterable[Stored]) -> Amount:
        """How many, and how much."""
        sizes = [one.size_bytes for one in found]
        return cls(objects=len(sizes), bytes=sum(sizes))


class SweepView(BaseModel):
    """What a sweep did, or would do; at most 500 objects at a time."""

    dry_run: bool
    used: Amount
    young: Amount = Field(description="unused, and too new to be swept")
    condemned: Amount = Field(description="condemned by this sweep: deleted by a later one")
    spared: Amount = Field(description="condemned before, used again")
    waiting: Amount = Field(description="condemned a short time ago")
    deleted: Amount
    unclaimed: int = Field(description="deleted contents that belonged to no object")

    @classmethod
    def of(cls, decided: Sweep, contents: list[str], *, dry_run: bool) -> SweepView:
        """As the API shows it."""
        return cls(
            dry_run=dry_run,
            used=Amount.of(decided.used),
            young=Amount.of(decided.young),
            condemned=Amount.of(decided.condemn),
            spared=Amount.of(decided.spare),
            waiting=Amount.of(decided.wait),
            deleted=Amount.of(decided.delete),
            unclaimed=len(contents),
        )
