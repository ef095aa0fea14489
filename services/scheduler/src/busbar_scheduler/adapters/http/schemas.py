"""Bodies of the admin API."""

from __future__ import annotations

from typing import Annotated

from busbar_messaging.topology import NAME_PATTERN
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from busbar_scheduler.domain.decisions import Decision
from busbar_scheduler.domain.fleet import Bundle, Deployment, Node
from busbar_scheduler.domain.progress import Progress

REPLICAS_MAX = 1_000
REGIONS_MAX = 100
TENANTS_MAX = 1_000

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
BundleReference = Annotated[str, StringConstraints(pattern=r"^(sha256:)?[a-z0-9][a-z0-9_-]{0,63}$")]
TenantId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$")]


class DeploymentBody(BaseModel):
    """A deployment to declare."""

    model_config = ConfigDict(extra="forbid")

    bundle: BundleReference = Field(description="digest, or a bundle's name for its newest")
    replicas: Annotated[int, Field(ge=0, le=REPLICAS_MAX, strict=True)] = 1
    regions: list[Name] = Field(default=[], max_length=REGIONS_MAX, description="none: all")
    tenants: list[TenantId] = Field(default=[], max_length=TENANTS_MAX, description="none: all")


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

    @classmethod
    def of(cls, bundle: Bundle) -> BundleView:
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
        )


class BundleList(BaseModel):
    """Every pushed bundle, newest first."""

    items: list[BundleView]


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
    status: str = Field(description="ready, progressing, failing, unplaceable or stopped")
    reason: str = Field(description="why it is not ready; empty when it is")
    ready_replicas: int
    replica_states: list[ReplicaView]

    @classmethod
    def of(cls, deployment: Deployment, progress: Progress) -> DeploymentView:
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
            status=progress.status,
            reason=progress.reason,
            ready_replicas=progress.ready_replicas,
            replica_states=[
                ReplicaView(node=one.node, state=one.state, reason=one.reason)
                for one in progress.replicas
            ],
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
