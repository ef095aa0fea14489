"""Deployments and bundles in their buckets."""

from __future__ import annotations

from dataclasses import dataclass

from busbar_errors import Conflict
from busbar_messaging import topology

from busbar_scheduler.adapters import codec
from busbar_scheduler.adapters.buckets import Buckets
from busbar_scheduler.adapters.fleet_view import FleetView
from busbar_scheduler.domain.fleet import Bundle, Deployment
from busbar_scheduler.domain.orders import Described
from busbar_scheduler.domain.tracks import ready_replicas

_DEPLOYMENTS, _BUNDLES = topology.DEPLOYMENTS.name, topology.BUNDLES.name
_SITES = topology.SITES.name


@dataclass(frozen=True, slots=True)
class Declarations:
    """Writes through to the bus and into our own picture, so that a reader sees what it wrote."""

    buckets: Buckets
    view: FleetView

    def deployment(self, name: str) -> Deployment | None:
        """A declared deployment."""
        return self.view.table.deployment(name)

    def ready(self, deployment: Deployment) -> int:
        """How many replicas of a deployment take work with its bundle."""
        return ready_replicas(self.view.look(), deployment.name, deployment.digest)

    def bundles(self) -> tuple[Bundle, ...]:
        """Every pushed bundle."""
        return tuple(self.view.table.bundles.values())

    async def put_deployment(self, deployment: Deployment) -> None:
        """Declare; raises Conflict when somebody else changed it meanwhile."""
        value = codec.deployment_message(deployment).SerializeToString()
        await self._put(_DEPLOYMENTS, deployment.name, value)

    def described(self, site: str) -> Described:
        """A site by "region.site"; the plainest one when nobody described it."""
        return self.view.table.described(site)

    async def put_site(self, described: Described) -> None:
        """Describe a site; raises Conflict when somebody else changed it meanwhile."""
        value = codec.site_message(described).SerializeToString()
        await self._put(_SITES, described.site.key, value)

    async def _put(self, bucket: str, key: str, value: bytes) -> None:
        known = self.view.table.revision_of(bucket, key)
        try:
            revision = await self.buckets.put_if(bucket, key, value, known)
        except Conflict:
            await self._learn(bucket, key)
            raise
        self.view.record(bucket, key, value, revision)
        self.view.changed.set()

    async def delete_deployment(self, name: str) -> None:
        """Withdraw; raises Conflict when somebody else changed it meanwhile."""
        known = self.view.table.revision_of(_DEPLOYMENTS, name)
        try:
            await self.buckets.delete_if(_DEPLOYMENTS, name, known)
        except Conflict:
            await self._learn(_DEPLOYMENTS, name)
            raise
        self.view.record_deletion(_DEPLOYMENTS, name)
        self.view.changed.set()

    async def put_bundle(self, bundle: Bundle) -> None:
        """Note that a bundle is there."""
        key = bundle.digest.removeprefix("sha256:")
        value = codec.bundle_message(bundle).SerializeToString()
        revision = await self.buckets.put(_BUNDLES, key, value)
        self.view.record(_BUNDLES, key, value, revision)

    async def delete_bundle(self, digest: str) -> None:
        """Forget that a bundle is there."""
        key = digest.removeprefix("sha256:")
        await self.buckets.delete(_BUNDLES, key)
        self.view.record_deletion(_BUNDLES, key)

    async def _learn(self, bucket: str, key: str) -> None:
        entry = await self.buckets.get(bucket, key)
        self.view.record_deletion(bucket, key)
        if entry:
            self.view.record(bucket, key, entry.value, entry.revision)
