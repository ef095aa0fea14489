"""The agent's side of the bus, apart from pulling: desired state, cancels, reports, events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog
from busbar_contracts.node.v1 import work_pb2
from busbar_contracts.scheduler.v1 import plan_pb2
from busbar_errors import Rejected, Unavailable
from busbar_messaging.bucket_changes import Current, Deleted, Put
from busbar_messaging.connection import publish_durably
from busbar_messaging.dispositions import decode
from busbar_messaging.topology import (
    DEAD_WORK,
    PLACEMENTS,
    BucketSpec,
    NodeId,
    cancel_subject,
    entry_subject,
    event_subject,
)
from busbar_messaging.watching import follow
from google.protobuf.message import Message
from nats.aio.client import Client
from nats.aio.msg import Msg

from busbar_node_agent.usecases.reconcile import Reconciler
from busbar_node_agent.usecases.work import WorkInHand

log = structlog.get_logger()

EVENT_GIVE_UP_AFTER = timedelta(seconds=15)
EVENTS_WAITING_MAX = 100
_PUT_TIMEOUT_S = 1.0


async def follow_placement(
    client: Client, node: NodeId, domain: str, reconciler: Reconciler
) -> None:
    """Hand every desired state of this node to the reconciler, for ever."""
    async for change in follow(client, PLACEMENTS.name, keys=node.key, domain=domain):
        match change:
            case Put(key, value) if key == node.key:
                try:
                    reconciler.desire(decode(plan_pb2.NodePlacement, value))
                except Rejected as error:
                    log.warning("placement ignored", reason=error.reason)
            case Deleted(key) if key == node.key:
                # No command: it carries no fencing token. An empty placement empties the node.
                log.warning("placement deleted; keeping what is held")
            case Current():
                reconciler.all_heard()
            case _:
                pass


async def take_cancels(
    client: Client, node: NodeId, work: WorkInHand, reconciler: Reconciler
) -> None:
    """From now on, cancel what gateways no longer wait for, and check models that they doubt."""

    async def on_cancel(message: Msg) -> None:
        try:
            cancel = decode(work_pb2.WorkCancel, message.data)
        except Rejected as error:
            log.warning("cancel ignored", reason=error.reason)
            return
        if cancel.garbled_deployment:
            reconciler.doubt(cancel.garbled_deployment)
        else:
            work.cancel(cancel.request_id, cancel.attempt)

    await client.subscribe(cancel_subject(node.key), cb=on_cancel)


def putter(
    client: Client, bucket: BucketSpec, key: str, domain: str
) -> Callable[[bytes], Awaitable[None]]:
    """A function that writes `key` of a bucket, once, within a second."""
    jetstream = client.jetstream(timeout=_PUT_TIMEOUT_S)
    subject = entry_subject(bucket, key, domain)

    async def put(value: bytes) -> None:
        await jetstream.publish(subject, value, timeout=_PUT_TIMEOUT_S)

    return put


class Events:
    """Publishes facts of this node in the background, a bounded number at a time."""

    def __init__(self, client: Client, run_id: str) -> None:
        self._jetstream = client.jetstream(timeout=5)
        self._run_id = run_id
        self._count = 0
        self._waiting: set[asyncio.Task[None]] = set()

    def publish(self, fact: str, event: Message) -> None:
        """Publish `event` under the name `fact`."""
        self._start(event_subject("node", fact), event.SerializeToString(), {})

    def bury(self, data: bytes, reason: str) -> None:
        """Publish work that nobody can ever do as a dead letter."""
        self._start(DEAD_WORK, data, {"Busbar-Reason": reason[:500]})

    def _start(self, subject: str, data: bytes, headers: dict[str, str]) -> None:
        if len(self._waiting) >= EVENTS_WAITING_MAX:
            log.warning("event dropped", subject=subject)
            return
        self._count += 1
        publishing = self._publish(subject, data, headers, f"{self._run_id}-{self._count}")
        task = asyncio.create_task(publishing, name=f"publish:{subject}")
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _publish(
        self, subject: str, data: bytes, headers: dict[str, str], message_id: str
    ) -> None:
        try:
            await publish_durably(
                self._jetstream,
                subject,
                data,
                message_id=message_id,
                give_up_after=EVENT_GIVE_UP_AFTER,
                headers=headers,
            )
        except Unavailable as error:
            log.warning("event not published", subject=subject, reason=error.reason)
