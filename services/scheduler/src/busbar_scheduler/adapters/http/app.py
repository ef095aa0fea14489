"""The admin API: bundles, deployments and the plan."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any

from busbar_errors import NotFound
from busbar_messaging.topology import NAME_PATTERN
from busbar_observability.known_queries import refuse_unknown_queries
from busbar_observability.operation_summaries import summarised
from busbar_observability.operator_gate import OperatorGate, OperatorToken
from fastapi import APIRouter, Depends, FastAPI, Path
from fastapi.security import HTTPBearer
from starlette.types import ASGIApp

from busbar_scheduler.adapters.announcements import Announcements
from busbar_scheduler.adapters.declarations import Declarations
from busbar_scheduler.adapters.fleet_view import FleetView
from busbar_scheduler.adapters.http import schemas
from busbar_scheduler.adapters.http.bundles import CHUNKS_PATH, BundlesApi
from busbar_scheduler.adapters.http.errors import ErrorBody, answer_failures
from busbar_scheduler.adapters.http.explanations import ExplanationView
from busbar_scheduler.adapters.http.places import PlacesApi
from busbar_scheduler.adapters.http.rollout_schemas import RolloutView
from busbar_scheduler.adapters.leadership import Leadership
from busbar_scheduler.domain.accounts import account_of
from busbar_scheduler.domain.explaining import emptied, impossible
from busbar_scheduler.domain.planning import plan
from busbar_scheduler.domain.progress import progress_of
from busbar_scheduler.domain.rollouts import is_track, track_of
from busbar_scheduler.usecases.declare_deployment import (
    Wish,
    check,
    declare,
    not_tried,
    roll_back,
    scale,
    withdraw,
)
from busbar_scheduler.usecases.rolling_out import Rollouts

_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 404, 409, 413, 422, 503)
}

DeploymentName = Annotated[str, Path(pattern=NAME_PATTERN)]


@dataclass(frozen=True, slots=True)
class AdminApi:
    """What the handlers work with."""

    view: FleetView
    leadership: Leadership
    declarations: Declarations
    bundles: BundlesApi
    rollouts: Rollouts
    announcements: Announcements

    def application(self, operator_token: str) -> ASGIApp:
        """The whole admin API behind its gate."""
        app = FastAPI(
            title="Busbar scheduler",
            version="1",
            docs_url=None,
            redoc_url=None,
            dependencies=[Depends(refuse_unknown_queries)],
        )
        app.include_router(self.bundles.chunks())
        app.include_router(self.bundles.bundles())
        app.include_router(self._deployments())
        app.include_router(self._changes())
        places = PlacesApi(self.view, self.declarations)
        app.include_router(places.sites())
        app.include_router(places.nodes())
        answer_failures(app)
        app.openapi = summarised(app.openapi)
        return OperatorGate(app, OperatorToken(operator_token), unbounded_paths={CHUNKS_PATH})

    def _deployments(self) -> APIRouter:
        router = _router("deployments")

        @router.get(
            "/admin/v1/deployments",
            responses={status: {"model": ErrorBody} for status in (401, 422)},
        )
        async def list_deployments() -> schemas.DeploymentList:
            """Every deployment with the state of its replicas."""
            return schemas.DeploymentList(items=self._views())

        @router.get("/admin/v1/deployments/{name}", responses=_FAILURES)
        async def get_deployment(name: DeploymentName) -> schemas.DeploymentView:
            """One deployment with the state of its replicas."""
            return self._view_of(name)

        @router.put("/admin/v1/deployments/{name}", responses=_FAILURES)
        async def put_deployment(
            name: DeploymentName, body: schemas.DeploymentBody
        ) -> schemas.DeclaredView:
            """Declare a deployment; `unplaceable` says that the present nodes can never hold it,
            `held_back` that another version serves on."""
            wish = _wish(name, body)
            declared = await declare(self.declarations, self.announcements, wish, _now_unix_ms())
            held_back = not_tried(self.declarations, wish, declared)
            return schemas.DeclaredView(**dict(self._view_of(name)), held_back=held_back)

        @router.delete("/admin/v1/deployments/{name}", status_code=204, responses=_FAILURES)
        async def delete_deployment(name: DeploymentName) -> None:
            """Withdraw a deployment; its replicas drain."""
            await withdraw(self.declarations, name)

        @router.get(
            "/admin/v1/plan", responses={status: {"model": ErrorBody} for status in (401, 422)}
        )
        async def get_plan() -> schemas.PlanView:
            """What every node must hold, and why."""
            return self._plan_view()

        del list_deployments, get_deployment, put_deployment, delete_deployment, get_plan
        return router

    def _changes(self) -> APIRouter:
        router = _router("deployments")

        @router.get("/admin/v1/deployments/{name}/explain", responses=_FAILURES)
        async def explain_deployment(name: DeploymentName) -> ExplanationView:
            """Why each replica is where it is, and what keeps more of them off the other nodes."""
            snapshot = self.view.look()
            found = [one for one in snapshot.deployments if one.name == name]
            if not found:
                raise NotFound(f"no deployment is called {name!r}")
            account = account_of(found[0], plan(snapshot), emptied(snapshot))
            scaling, rollout = self.view.autoscaler.reason(name), self.rollouts.reason(name)
            return ExplanationView.of(found[0], account, scaling, rollout)

        @router.post("/admin/v1/deployments/{name}/check", status_code=204, responses=_FAILURES)
        async def check_deployment(name: DeploymentName, body: schemas.DeploymentBody) -> None:
            """Say what declaring it would be refused for now; nothing is declared."""
            check(self.declarations, _wish(name, body), _now_unix_ms())

        @router.post("/admin/v1/deployments/{name}/scale", responses=_FAILURES)
        async def scale_deployment(
            name: DeploymentName, body: schemas.ScaleBody
        ) -> schemas.DeploymentView:
            """Promise another number of replicas."""
            await scale(self.declarations, name, body.replicas, body.max_replicas)
            return self._view_of(name)

        @router.post("/admin/v1/deployments/{name}/rollback", responses=_FAILURES)
        async def roll_back_deployment(
            name: DeploymentName, body: schemas.RollbackBody | None = None
        ) -> schemas.DeploymentView:
            """Give up the version on trial, or go back to the bundle that served before."""
            at_once = body is not None and body.at_once
            await roll_back(
                self.declarations, self.announcements, name, _now_unix_ms(), at_once=at_once
            )
            return self._view_of(name)

        del explain_deployment, check_deployment, scale_deployment, roll_back_deployment
        return router

    def _views(self) -> list[schemas.DeploymentView]:
        snapshot = self.view.look()
        decided, empty = plan(snapshot), emptied(snapshot)
        never = {
            one.name: impossible(one, empty) for one in snapshot.deployments if is_track(one.name)
        }
        return [
            schemas.DeploymentView.of(
                one,
                progress_of(one, decided, empty),
                snapshot.wanted(one),
                self.view.autoscaler.reason(one.name),
                RolloutView.of(
                    one, self.rollouts.reason(one.name), never.get(track_of(one.name), "")
                ),
            )
            for one in sorted(snapshot.deployments, key=lambda one: one.name)
            if not is_track(one.name)
        ]

    def _view_of(self, name: str) -> schemas.DeploymentView:
        found = next((view for view in self._views() if view.name == name), None)
        if found is None:
            raise NotFound(f"no deployment is called {name!r}")
        return found

    def _plan_view(self) -> schemas.PlanView:
        snapshot = self.view.look()
        decided, token = plan(snapshot), self.leadership.token()
        held = {key: [one.deployment for one in all_] for key, all_ in decided.placements.items()}
        return schemas.PlanView(
            revision=decided.revision,
            leading=token is not None,
            fencing_token=token or 0,
            nodes=[schemas.NodeView.of(one, held.get(one.key, [])) for one in snapshot.nodes],
            decisions=[schemas.DecisionView.of(one) for one in decided.decisions],
        )


def _wish(name: str, body: schemas.DeploymentBody) -> Wish:
    return Wish(
        name=name,
        bundle=body.bundle,
        replicas=body.replicas,
        regions=_unique(body.regions),
        tenants=_unique(body.tenants),
        max_replicas=body.max_replicas,
        pins=tuple(pin.replace("/", ".") for pin in _unique(body.pins)),
        per_site_max=body.per_site_max,
        per_feeder_max=body.per_feeder_max,
        survives_site_loss=body.survives_site_loss,
        value_nanos_per_request=body.value_nanos_per_request,
        scale_down_after_s=body.scale_down_after_s,
        rollout=body.rollout.terms() if body.rollout else None,
        at_once=body.at_once,
        again=body.again,
    )


def _router(tag: str) -> APIRouter:
    """Routes that the document shows as needing the token; the gate is what demands it."""
    return APIRouter(tags=[tag], dependencies=[Depends(HTTPBearer(auto_error=False))])


def _unique(names: list[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))


def _now_unix_ms() -> int:
    return time.time_ns() // 1_000_000
