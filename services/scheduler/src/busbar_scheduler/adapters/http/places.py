"""Sites and nodes: what they have, what they were told, how far a drain has come."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any

from busbar_errors import NotFound
from busbar_messaging.topology import NAME_PATTERN
from fastapi import APIRouter, Depends, Path, Query
from fastapi.security import HTTPBearer

from busbar_scheduler.adapters.declarations import Declarations
from busbar_scheduler.adapters.fleet_view import FleetView
from busbar_scheduler.adapters.http import place_schemas as schemas
from busbar_scheduler.adapters.http.errors import ErrorBody
from busbar_scheduler.domain.fleet import Node, Order, Site, Snapshot
from busbar_scheduler.domain.orders import Told
from busbar_scheduler.domain.planning import Plan, plan
from busbar_scheduler.usecases.tell_place import describe, resume, tell

_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (401, 404, 409, 422, 503)
}
_SITES, _NODES = "/admin/v1/sites", "/admin/v1/nodes"
Name = Annotated[str, Path(pattern=NAME_PATTERN)]
New = Annotated[
    bool, Query(description="also a site of which no node has reported and that nobody described")
]


@dataclass(frozen=True, slots=True)
class PlacesApi:
    """What the handlers work with."""

    view: FleetView
    declarations: Declarations

    def sites(self) -> APIRouter:
        """Looking at sites and changing them."""
        router = _router("sites")

        @router.get(_SITES, responses={status: {"model": ErrorBody} for status in (401, 422)})
        async def list_sites() -> schemas.SiteList:
            """Every site with a node or a description."""
            snapshot, decided = self._look()
            keys = {node.site_key for node in snapshot.nodes} | set(snapshot.sites)
            items = [self._site(key, snapshot, decided) for key in sorted(keys)]
            return schemas.SiteList(items=items)

        @router.get(_SITES + "/{region}/{site}", responses=_FAILURES)
        async def get_site(region: Name, site: Name) -> schemas.SiteView:
            """One site."""
            return self._site(self._known_site(region, site), *self._look())

        @router.put(_SITES + "/{region}/{site}", responses=_FAILURES)
        async def put_site(
            region: Name, site: Name, body: schemas.SiteBody, *, new: New = False
        ) -> schemas.SiteView:
            """What feeds a site, what it costs, what it may draw."""
            key = f"{region}.{site}" if new else self._known_site(region, site)
            described = Site(key, body.power_cap_w or 0, body.energy_nanos_per_kwh, body.feeder)
            await describe(self.declarations, described)
            return self._site(key, *self._look())

        async def told(region: str, site: str, order: Told | None) -> schemas.SiteView:
            key = self._known_site(region, site)
            await tell(self.declarations, key, "", order)
            return self._site(key, *self._look())

        @router.post(_SITES + "/{region}/{site}/cordon", responses=_FAILURES)
        async def cordon_site(
            region: Name, site: Name, body: schemas.CordonBody
        ) -> schemas.SiteView:
            """Place nothing new there; what is there stays."""
            return await told(region, site, _cordon(body))

        @router.post(_SITES + "/{region}/{site}/drain", responses=_FAILURES)
        async def drain_site(region: Name, site: Name, body: schemas.DrainBody) -> schemas.SiteView:
            """Place nothing new there, and have what is there go within the grace."""
            return await told(region, site, _drain(body))

        @router.post(_SITES + "/{region}/{site}/resume", responses=_FAILURES)
        async def resume_site(region: Name, site: Name) -> schemas.SiteView:
            """Use it as usual; what its nodes were told stays."""
            return await told(region, site, None)

        del list_sites, get_site, put_site, cordon_site, drain_site, resume_site
        return router

    def nodes(self) -> APIRouter:
        """Looking at nodes and telling them what to do."""
        router = _router("nodes")
        one = _NODES + "/{region}/{site}/{node}"

        @router.get(_NODES, responses={status: {"model": ErrorBody} for status in (401, 422)})
        async def list_nodes() -> schemas.NodeDetailList:
            """Every node."""
            snapshot, decided = self._look()
            return schemas.NodeDetailList(
                items=[self._node(node, decided) for node in snapshot.nodes]
            )

        @router.get(one, responses=_FAILURES)
        async def get_node(region: Name, site: Name, node: Name) -> schemas.NodeDetail:
            """One node: what it holds, what becomes of it, what is in hand."""
            return self._known_node(f"{region}.{site}.{node}")

        async def told(region: str, site: str, node: str, order: Told) -> schemas.NodeDetail:
            key = f"{region}.{site}.{node}"
            self._known_node(key)
            await tell(self.declarations, f"{region}.{site}", node, order)
            return self._known_node(key)

        @router.post(one + "/cordon", responses=_FAILURES)
        async def cordon_node(
            region: Name, site: Name, node: Name, body: schemas.CordonBody
        ) -> schemas.NodeDetail:
            """Place nothing new there; what is there stays."""
            return await told(region, site, node, _cordon(body))

        @router.post(one + "/drain", responses=_FAILURES)
        async def drain_node(
            region: Name, site: Name, node: Name, body: schemas.DrainBody
        ) -> schemas.NodeDetail:
            """Place nothing new there, and have what is there go within the grace."""
            return await told(region, site, node, _drain(body))

        @router.post(one + "/resume", responses=_FAILURES)
        async def resume_node(region: Name, site: Name, node: Name) -> schemas.NodeDetail:
            """Use it as usual, also for bundles that were kept off it because they failed there."""
            key = f"{region}.{site}.{node}"
            self._known_node(key)
            await resume(self.declarations, f"{region}.{site}", node, _now_unix_ms())
            return self._known_node(key)

        del list_nodes, get_node, cordon_node, drain_node, resume_node
        return router

    def _look(self) -> tuple[Snapshot, Plan]:
        snapshot = self.view.look()
        return snapshot, plan(snapshot)

    def _known_site(self, region: str, site: str) -> str:
        key, snapshot = f"{region}.{site}", self.view.look()
        known = key in snapshot.sites or any(node.site_key == key for node in snapshot.nodes)
        if not known:
            raise NotFound(f"no site is called {region}/{site}, and none of its nodes has reported")
        return key

    def _known_node(self, key: str) -> schemas.NodeDetail:
        snapshot, decided = self._look()
        found = [node for node in snapshot.nodes if node.key == key]
        if not found:
            raise NotFound(f"no node is called {key.replace('.', '/')}, or it never reported")
        return self._node(found[0], decided)

    def _site(self, key: str, snapshot: Snapshot, decided: Plan) -> schemas.SiteView:
        nodes = [node for node in snapshot.nodes if node.site_key == key]
        described = self.view.table.described(key)
        held = [one for node in nodes for one in decided.packing.on(node.key)]
        return schemas.SiteView.of(
            described, nodes=len(nodes), drawn_w=sum(one.manifest.power_w for one in held)
        )

    def _node(self, node: Node, decided: Plan) -> schemas.NodeDetail:
        described = self.view.table.described(node.site_key)
        told = described.nodes.get(node.key.rsplit(".", 1)[1]) or described.told
        table = self.view.table
        claim = table.claim(node.key, time.monotonic())
        return schemas.NodeDetail.of(node, told, table.handled(node.key), claim, decided)


def _router(tag: str) -> APIRouter:
    return APIRouter(tags=[tag], dependencies=[Depends(HTTPBearer(auto_error=False))])


def _cordon(body: schemas.CordonBody) -> Told:
    return Told(Order.CORDON, _now_unix_ms(), reason=body.reason)


def _drain(body: schemas.DrainBody) -> Told:
    return Told(Order.DRAIN, _now_unix_ms(), round(body.grace_s * 1000), body.reason)


def _now_unix_ms() -> int:
    return time.time_ns() // 1_000_000
