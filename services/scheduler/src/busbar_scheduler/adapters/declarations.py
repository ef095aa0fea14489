"""Deployments and bundles in their buckets."""

from __future__ import annotations

from dataclasses import dataclass

from busbar_errors import Conflict
from busbar_messaging import topology

from busbar_scheduler.adapters import codec
from busbar_scheduler.adapters.buckets import Buckets
from busbar_scheduler.adapters.fleet_view import FleetView
from busbar_scheduler.domain.fleet import Bundle, Deployment

_DEPLOYMENTS, _BUNDLES = topology.DEPLOYMENTS.name, topology.BUNDLES.name


@dataclass(frozen=True, slots=True)
class Declarations:
    """Writes through to the bus and into our own picture, so that a reader sees what it wrote."""

    buckets: Buckets
    view: FleetView

    def deployment(self, name: str) -> Deployment | None:
        """A declared deployment."""
        return self.view.table.deployment(name)

    def bundles(self) -> tuple[Bundle, ...]:
        """Every pushed bundle."""
        return tuple(self.view.table.bundles.values())

    async def put_deployment(self, deployment: Deployment) -> None:
        """Declare; raises Conflict when somebody else changed it meanwhile."""
        value = codec.deployment_message(deployment).SerializeToString()
        known = self.view.table.revision_of(_DEPLOYMENTS, deployment.name)
        try:
            revision = await self.buckets.put_if(_DEPLOYMENTS, deployment.name, value, known)
        except Conflict:
            await self._learn(deployment.name)
            raise
        self.view.record(_DEPLOYMENTS, deployment.name, value, revision)
        self.view.changed.set()

    async def delete_deployment(self, name: str) -> None:
        """Withdraw; raises Conflict when somebody else changed it meanwhile."""
        known = self.view.table.revision_of(_DEPLOYMENTS, name)
        try:
            await self.buckets.delete_if(_DEPLOYMENTS, name, known)
        except Conflict:
            await self._learn(name)
            raise
        self.view.record_deletion(_DEPLOYMENTS, name)
        self.view.changed.set()

    async def put_bundle(self, bundle: Bundle) -> None:
        """Note that a bundle is there."""
        key = bundle.digest.removeprefix("sha256:")
        value = codec.bundle_message(bundle).SerializeToString()
        revision = await self.buckets.put(_BUNDLES, key, value)
        self.view.record(_BUNDLES, key, value, revision)

    async def _learn(self, name: str) -> None:
        entry = await self.buckets.get(_DEPLOYMENTS, name)
        self.view.record_deletion(_DEPLOYMENTS, name)
        if entry:
            self.view.record(_DEPLOYMENTS, name, entry.value, entry.revision)
