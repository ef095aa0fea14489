"""What the use cases need from the outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from busbar_contracts.scheduler.v1.bundle_pb2 import SealedBundle

from busbar_scheduler.domain.fleet import Assignment, Bundle, Deployment, Route, Snapshot
from busbar_scheduler.domain.orders import Described
from busbar_scheduler.domain.planning import Plan
from busbar_scheduler.domain.publishing import Changes, Published
from busbar_scheduler.domain.queues import QueueNames, WantedQueues
from busbar_scheduler.domain.rollout_news import Moved


class Fleet(Protocol):
    """The picture of the fleet."""

    def gather(self) -> Snapshot | None:
        """The fleet as it is now; None while the picture is not current."""
        ...

    def published(self) -> Published:
        """What stands in the buckets of placements and routes."""
        ...


class Leadership(Protocol):
    """Whether we are the one that publishes."""

    def token(self) -> int | None:
        """Our fencing token; None when we do not lead, or may not any more."""
        ...

    def step_down(self) -> None:
        """Stop leading: somebody with a newer token was seen."""
        ...


class Board(Protocol):
    """Where placements and routes are published.

    Each write is refused with Conflict when the entry is not the one we know, and
    with Deposed when a newer leader wrote it.
    """

    async def put_placement(
        self,
        node: str,
        held: tuple[Assignment, ...],
        fencing_token: int,
        revision: int,
        queues: Mapping[str, str] | None = None,
    ) -> None:
        """Tell a node what it must hold, and out of which queues it gets the work."""
        ...

    async def delete_placement(self, node: str, fencing_token: int) -> None:
        """Forget a node."""
        ...

    async def put_route(self, route: Route, fencing_token: int) -> None:
        """Tell gateways how to reach a deployment."""
        ...

    async def delete_route(self, deployment: str, fencing_token: int) -> None:
        """Tell gateways that a deployment is gone."""
        ...


class WorkQueues(Protocol):
    """The queues that agents pull work from."""

    async def ensure(self, wanted: WantedQueues) -> QueueNames:
        """Make the queues exist that are wanted, and no others; returns their sealed names."""
        ...


class Announcements(Protocol):
    """Facts for everybody."""

    async def plan_published(self, plan: Plan, changes: Changes) -> None:
        """A plan that changed something was published."""
        ...

    async def rollout_moved(self, moved: Moved) -> None:
        """A rollout went a step further, or back."""
        ...


class Declarations(Protocol):
    """Where deployments and bundles are declared."""

    def deployment(self, name: str) -> Deployment | None:
        """A declared deployment."""
        ...

    def ready(self, deployment: Deployment) -> int:
        """How many replicas of a deployment take work with its bundle."""
        ...

    def bundles(self) -> tuple[Bundle, ...]:
        """Every pushed bundle."""
        ...

    async def put_deployment(self, deployment: Deployment) -> None:
        """Declare; raises Conflict when somebody else changed it meanwhile."""
        ...

    async def delete_deployment(self, name: str) -> None:
        """Withdraw."""
        ...

    async def put_bundle(self, bundle: Bundle) -> None:
        """Note that a bundle is there."""
        ...

    async def delete_bundle(self, digest: str) -> None:
        """Forget that a bundle is there."""
        ...


class Sites(Protocol):
    """Where sites are described, and what they and their nodes were told."""

    def described(self, site: str) -> Described:
        """A site by "region.site"; the plainest one when nobody described it."""
        ...

    async def put_site(self, described: Described) -> None:
        """Describe; raises Conflict when somebody else changed it meanwhile."""
        ...


class ModelStore(Protocol):
    """Where bundles and their chunks lie."""

    async def chunk_bytes(self, sha256: bytes) -> int | None:
        """The chunk's size; None when it is not there, or does not stay."""
        ...

    async def holds_bundle(self, digest: str) -> bool:
        """Whether a bundle's contents and seals are there, and stay."""
        ...

    async def bundle(self, digest: str) -> SealedBundle:
        """A bundle's contents and seals; raises NotFound."""
        ...

    async def put_bundle(self, digest: str, sealed: SealedBundle) -> None:
        """Store a bundle's contents and seals; raises Unavailable without room."""
        ...
