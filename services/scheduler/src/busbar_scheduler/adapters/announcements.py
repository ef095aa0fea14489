"""Facts of the scheduler, published to EVENTS."""

from __future__ import annotations

import uuid
from datetime import timedelta
from itertools import islice

import structlog
from busbar_contracts.scheduler.v1.events_pb2 import (
    LeaderElected,
    PlanPublished,
    RolloutMoved,
)
from busbar_errors import Unavailable
from busbar_messaging import topology
from busbar_messaging.connection import publish_durably
from google.protobuf.message import Message
from nats.aio.client import Client

from busbar_scheduler.adapters.rollout_codec import PHASES
from busbar_scheduler.domain.planning import Plan
from busbar_scheduler.domain.publishing import Changes
from busbar_scheduler.domain.rollout_news import Moved

log = structlog.get_logger()

_GIVE_UP_AFTER = timedelta(seconds=2)
_REASONS_MAX = 50


class Announcements:
    """Publishes facts; one that cannot be published in time is logged and left out."""

    def __init__(self, client: Client, scheduler_id: str) -> None:
        self._jetstream = client.jetstream()
        self._scheduler_id = scheduler_id

    async def leader_elected(self, fencing_token: int) -> None:
        """We lead from now on."""
        event = LeaderElected(scheduler_id=self._scheduler_id, fencing_token=fencing_token)
        await self._publish("leader_elected", event)

    async def plan_published(self, plan: Plan, changes: Changes) -> None:
        """A plan that changed something was published."""
        news = [str(one) for one in islice(plan.changed, _REASONS_MAX)]
        event = PlanPublished(
            snapshot_revision=plan.revision,
            nodes_changed=len(changes.placements) + len(changes.placements_gone),
            routes_changed=len(changes.routes) + len(changes.routes_gone),
            reasons=news,
        )
        await self._publish("plan_published", event)

    async def rollout_moved(self, moved: Moved) -> None:
        """A rollout went a step further, or back."""
        event = RolloutMoved(
            deployment=moved.deployment,
            bundle_digest=moved.digest,
            percent=moved.percent,
            rolled_back=moved.rolled_back,
            reason=moved.reason,
            phase=PHASES[moved.phase],
        )
        await self._publish("rollout_moved", event)

    async def _publish(self, fact: str, event: Message) -> None:
        try:
            await publish_durably(
                self._jetstream,
                topology.event_subject("scheduler", fact),
                event.SerializeToString(),
                message_id=uuid.uuid4().hex,
                give_up_after=_GIVE_UP_AFTER,
            )
        except Unavailable as error:
            log.warning("fact not published", fact=fact, error=error.reason)
