"""Bodies of the admin API."""

from __future__ import annotations

from typing import Annotated

from busbar_messaging.topology import NAME_PATTERN
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    model_validator,
)

from busbar_scheduler.adapters.http.rollout_schemas import RolloutBody, RolloutView
from busbar_scheduler.domain.decisions import Decision
from busbar_scheduler.domain.fleet import SCALE_DOWN_AFTER_S, Deployment, Node
from busbar_scheduler.domain.progress import Progress

REPLICAS_MAX = 1_000
REGIONS_MAX = 100
TENANTS_MAX = 1_000

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
BundleReference = Annotated[str, StringConstraints(pattern=r"^(sha256:)?[a-z0-9][a-z0-9_-]{0,63}$")]
TenantId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$")]


PINS_MAX = 100
_PART = NAME_PATTERN.strip("^$")
PlaceName = Annotated[str, StringConstraints(pattern=rf"^{_PART}/{_PART}(/{_PART})?$")]
"""region/site or region/site/node."""
Limit = Annotated[int, Field(ge=0, le=REPLICAS_MAX, strict=True)]


class DeploymentBody(BaseModel):
    """A deployment to declare."""

    model_config = ConfigDict(extra="forbid")

    bundle: BundleReference = Field(
        description="digest, its first 12 digits at least, or a bundle's name for its newest"
    )
    replicas: Annotated[int, Field(ge=0, le=REPLICAS_MAX, strict=True)] = 1
    regions: list[Name] = Field(default=[], max_length=REGIONS_MAX, description="none: all")
    tenants: list[TenantId] = Field(
        default=[],
        max_length=TENANTS_MAX,
        description="ids, as billing gave them; none: all. They are not looked up, since only "
        "billing knows tenants: an id that it never gave opens the deployment to nobody. "
        "`busbar deploy` asks billing first.",
    )
    max_replicas: Annotated[int, Field(ge=0, le=REPLICAS_MAX, strict=True)] = Field(
        default=0,
        description="how far demand may scale it; 0: not at all; with 0 replicas it sleeps while "
        "nothing is asked",
    )
    pins: list[PlaceName] = Field(
        default=[], max_length=PINS_MAX, description="sites and nodes it may run on; none: all"
    )
    per_site_max: Limit = Field(default=0, description="replicas at one site; 0: any number")
    per_feeder_max: Limit = Field(default=0, description="replicas on one feeder; 0: any number")
    survives_site_loss: bool = Field(
        default=False, description="whether `replicas` are left when any one site is lost"
    )
    value_nanos_per_request: Annotated[int, Field(ge=0, le=10**15, strict=True)] = Field(
        default=0, description="what a served request brings in; 0: not known"
    )
    scale_down_after_s: Annotated[int, Field(ge=1, le=86_400, strict=True)] = Field(
        default=SCALE_DOWN_AFTER_S,
        description="how long less must be asked before replicas go that demand had brought",
    )
    rollout: RolloutBody | None = Field(
        default=None,
        description="how a new version is tried beside the one that serves; none: it takes over, "
        "unwatched, when it has as many slots ready",
    )
    at_once: StrictBool = Field(
        default=False,
        description="whether a new version takes the place of the one that serves before it is "
        "ready: nothing answers meanwhile, but there need not be room for both",
    )
    again: StrictBool = Field(
        default=False,
        description="whether a version that did worse is tried once more on the same terms",
    )

    @model_validator(mode="after")
    def _at_once_or_tried(self) -> DeploymentBody:
        if self.at_once and self.rollout is not None:
            raise ValueError("at_once would not try the new version: leave it or rollout out")
        return self


class RollbackBody(BaseModel):
    """How to go back."""

    model_config = ConfigDict(extra="forbid")

    at_once: StrictBool = Field(
        default=False,
        description="whether the present version goes before the one before it is ready again",
    )


class ScaleBody(BaseModel):
    """How many replicas are promised from now on."""

    model_config = ConfigDict(extra="forbid")

    replicas: Annotated[int, Field(ge=0, le=REPLICAS_MAX, strict=True)]
    max_replicas: Annotated[int, Field(ge=0, le=REPLICAS_MAX, strict=True)] | None = Field(
        default=None, description="how far demand may scale it; none: as before"
    )


class ReplicaView(BaseModel):
    """One wanted replica."""

    node: str = Field(description="region.site.node; empty while it has none")
    state: str
    reason: str


class DeploymentView(BaseModel):
    """A declared deployment and how far it has come."""

    name: str
    bundle: str
    bundle_name: str
    bundle_version: str
    task: str
    replicas: int
    regions: list[str]
    tenants: list[str]
    created_unix_ms: int
    max_replicas: int
    pins: list[str]
    per_site_max: int
    per_feeder_max: int
    survives_site_loss: bool
    value_nanos_per_request: int
    previous_bundle: str = Field(description="what a rollback goes back to; empty for nothing")
    scale_down_after_s: int
    wanted_replicas: int = Field(description="with what demand asks for beyond the promise")
    scaling: str = Field(description="why so many are wanted; empty where demand does not decide")
    status: str = Field(
        description="ready, progressing, failing, unplaceable, asleep (a request wakes it) or "
        "stopped"
    )
    reason: str = Field(description="why it is not ready; empty when it is")
    ready_replicas: int
    replica_states: list[ReplicaView]
    rollout: RolloutView

    @classmethod
    def of(
        cls,
        deployment: Deployment,
        progress: Progress,
        wanted: int,
        scaling: str,
        rollout: RolloutView,
    ) -> DeploymentView:
        """As the API shows it."""
        return cls(
            name=deployment.name,
            bundle=deployment.digest,
            bundle_name=deployment.manifest.name,
            bundle_version=deployment.manifest.version,
            task=str(deployment.manifest.task),
            replicas=deployment.replicas,
            regions=list(deployment.regions),
            tenants=list(deployment.tenants),
            created_unix_ms=deployment.created_unix_ms,
            max_replicas=deployment.max_replicas,
            pins=[pin.replace(".", "/") for pin in deployment.pins],
            per_site_max=deployment.per_site_max,
            per_feeder_max=deployment.per_feeder_max,
            survives_site_loss=deployment.survives_site_loss,
            value_nanos_per_request=deployment.value_nanos_per_request,
            previous_bundle=deployment.previous_digest,
            scale_down_after_s=deployment.scale_down_after_s,
            wanted_replicas=wanted,
            scaling=scaling,
            status=progress.status,
            reason=progress.reason,
            ready_replicas=progress.ready_replicas,
            replica_states=[
                ReplicaView(node=one.node, state=one.state, reason=one.reason)
                for one in progress.replicas
            ],
            rollout=rollout,
        )


class DeclaredView(DeploymentView):
    """A deployment that was just declared."""

    held_back: str = Field(
        description="why its bundle was rolled back on these terms, so that it is not tried now: "
        "declare it with `again`, on other terms, or without a rollout; empty when it is tried or "
        "serves"
    )


class DeploymentList(BaseModel):
    """Every deployment, by name."""

    items: list[DeploymentView]


class DecisionView(BaseModel):
    """What the plan does with one replica."""

    deployment: str
    node: str
    verdict: str
    reason: str

    @classmethod
    def of(cls, decision: Decision) -> DecisionView:
        """As the API shows it."""
        return cls(
            deployment=decision.deployment,
            node=decision.node,
            verdict=str(decision.verdict),
            reason=decision.reason,
        )


class NodeView(BaseModel):
    """A node as the plan sees it."""

    node: str
    health: str
    memory_mib: int
    slots: int
    deployments: list[str]

    @classmethod
    def of(cls, node: Node, deployments: list[str]) -> NodeView:
        """As the API shows it."""
        return cls(
            node=node.key,
            health=str(node.health),
            memory_mib=node.memory_mib,
            slots=node.slots,
            deployments=deployments,
        )


class PlanView(BaseModel):
    """What would be published now, and why."""

    revision: int
    leading: bool
    fencing_token: int = Field(description="0 when this scheduler does not lead")
    nodes: list[NodeView]
    decisions: list[DecisionView]
