"""Publishing placements and routes so that only the present leader can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from busbar_contracts.scheduler.v1.plan_pb2 import NodePlacement
from busbar_contracts.scheduler.v1.plan_pb2 import Route as RouteMessage
from busbar_errors import Conflict
from busbar_messaging import topology
from busbar_messaging.dispositions import decode

from busbar_scheduler.adapters import codec
from busbar_scheduler.adapters.buckets import Buckets
from busbar_scheduler.adapters.fleet_view import FleetView
from busbar_scheduler.adapters.leadership import Leadership
from busbar_scheduler.domain.fleet import Assignment, Route
from busbar_scheduler.domain.leading import Deposed

_PLACEMENTS, _ROUTES = topology.PLACEMENTS.name, topology.ROUTES.name


@dataclass(frozen=True, slots=True)
class Board:
    """Compare-and-set writes, fenced twice: by revision and by the token in the entry.

    A leader that slept through its lease still knows old revisions only. Its successor
    has rewritten every entry under its own token, so the server refuses the sleeper.
    """

    buckets: Buckets
    view: FleetView
    leadership: Leadership

    async def put_placement(
        self,
        node: str,
        held: tuple[Assignment, ...],
        fencing_token: int,
        revision: int,
        queues: Mapping[str, str] | None = None,
    ) -> None:
        """Tell a node what it must hold, and out of which queues it gets the work."""
        message = codec.placement_message(
            node,
            held,
            fencing_token,
            revision,
            drain_within_ms=self.view.table.drain_within_ms(node),
            queues=queues,
        )
        await self._put(_PLACEMENTS, node, message.SerializeToString(), fencing_token)

    async def delete_placement(self, node: str, fencing_token: int) -> None:
        """Forget a node."""
        await self._delete(_PLACEMENTS, node, fencing_token)

    async def put_route(self, route: Route, fencing_token: int) -> None:
        """Tell gateways how to reach a deployment."""
        message = codec.route_message(route, fencing_token)
        await self._put(_ROUTES, route.deployment, message.SerializeToString(), fencing_token)

    async def delete_route(self, deployment: str, fencing_token: int) -> None:
        """Tell gateways that a deployment is gone."""
        await self._delete(_ROUTES, deployment, fencing_token)

    async def _put(self, bucket: str, key: str, value: bytes, fencing_token: int) -> None:
        self._still_leading(fencing_token)
        known = self.view.table.revision_of(bucket, key)
        try:
            revision = await self.buckets.put_if(bucket, key, value, known)
        except Conflict:
            await self._learn(bucket, key, fencing_token)
            raise
        self.view.record(bucket, key, value, revision)

    async def _delete(self, bucket: str, key: str, fencing_token: int) -> None:
        self._still_leading(fencing_token)
        known = self.view.table.revision_of(bucket, key)
        try:
            await self.buckets.delete_if(bucket, key, known)
        except Conflict:
            await self._learn(bucket, key, fencing_token)
            raise
        self.view.record_deletion(bucket, key)

    def _still_leading(self, fencing_token: int) -> None:
        if self.leadership.token() != fencing_token:
            raise Deposed("the leader's lease ran out before everything was published")

    async def _learn(self, bucket: str, key: str, fencing_token: int) -> None:
        """Take in what stands there; raise Deposed when a newer leader wrote it."""
        entry = await self.buckets.get(bucket, key)
        self.view.record_deletion(bucket, key)
        if entry is None:
            return
        self.view.record(bucket, key, entry.value, entry.revision)
        newer = _token(bucket, entry.value)
        if newer > fencing_token:
            raise Deposed(f"{bucket}/{key} carries token {newer}, ours is {fencing_token}")


def _token(bucket: str, value: bytes) -> int:
    message = decode(NodePlacement if bucket == _PLACEMENTS else RouteMessage, value)
    return message.fencing_token
