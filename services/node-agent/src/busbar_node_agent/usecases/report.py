"""What the node tells the fleet about itself: its lease every second, its status on change."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog
from busbar_contracts.node.v1 import status_pb2
from busbar_messaging.topology import HEARTBEAT_INTERVAL

from busbar_node_agent import __version__
from busbar_node_agent.usecases.reconcile import Reconciler
from busbar_node_agent.usecases.supervise import READY, TritonSupervisor
from busbar_node_agent.usecases.work import WorkInHand

log = structlog.get_logger()

STATUS_INTERVAL_S = 10.0
_GATHER_CHANGES_S = 0.02
_RETRY_AFTER_S = 0.5


@dataclass(slots=True)
class Reporter:
    """Writes NodeLease and NodeStatus. `put` takes bucket value bytes and may fail."""

    node: str
    run_id: str
    capacity: status_pb2.NodeCapacity
    supervisor: TritonSupervisor
    reconciler: Reconciler
    work: WorkInHand
    refusal: Callable[[], str]
    """Why no new work may be taken although Triton is ready; "" when it may."""
    put_lease: Callable[[bytes], Awaitable[None]]
    put_status: Callable[[bytes], Awaitable[None]]
    draining: bool = False
    released: bool = False
    """Whether this run has ended, as far as the fleet is concerned."""
    leased: bool = False
    """Whether the last lease was stored."""
    _refused: str = ""
    """As it was last reported."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def changed(self) -> None:
        """Something of the status is different; report it soon."""
        self._changed.set()

    @property
    def ready(self) -> bool:
        """Whether the node takes work."""
        return self.supervisor.state == READY and not self.draining and not self.refusal()

    async def lease(self) -> None:
        """Show signs of life, for ever."""
        interval_s = HEARTBEAT_INTERVAL.total_seconds()
        while True:
            await self.write_lease()
            if self.refusal() != self._refused:
                self.changed()
            await asyncio.sleep(interval_s - asyncio.get_running_loop().time() % interval_s)

    async def report(self) -> None:
        """Write the status on every change and every 10 s, for ever."""
        while True:
            self._changed.clear()
            # First, so that whoever sees the last replica gone knows what became of its work.
            await self.write_lease()
            if not await self.write_status():
                await asyncio.sleep(_RETRY_AFTER_S)
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), STATUS_INTERVAL_S)
                await asyncio.sleep(_GATHER_CHANGES_S)

    async def write_lease(self) -> bool:
        """Write the lease now; returns whether it was stored."""
        lease = status_pb2.NodeLease(
            node=self.node,
            agent_run_id=self.run_id,
            in_flight=len(self.work),
            ready=self.ready,
            finished_count=self.work.finished_count,
            failed_count=self.work.failed_count,
            handed_back_count=self.work.handed_back_count,
            released=self.released,
        )
        self.leased = await self._put("lease", self.put_lease, lease.SerializeToString())
        return self.leased

    async def write_status(self) -> bool:
        """Write the status now; returns whether it was stored."""
        self._refused, settled = self.refusal(), self.reconciler.settled()
        status = status_pb2.NodeStatus(
            node=self.node,
            agent_run_id=self.run_id,
            agent_version=__version__,
            reported_unix_ms=int(time.time() * 1000),
            capacity=self.capacity,
            triton_state=self.supervisor.state,
            triton_reason=self.supervisor.reason,
            triton_restarts=self.supervisor.restarts,
            replicas=self._replicas(),
            placement_revision=self.reconciler.revision,
            draining=self.draining,
            refusal=self._refused,
            reads_queue_names=True,
        )
        stored = await self._put("status", self.put_status, status.SerializeToString())
        if stored:
            self.reconciler.start.reported(settled)
        return stored

    def _replicas(self) -> list[status_pb2.ReplicaStatus]:
        return [
            status_pb2.ReplicaStatus(
                deployment=replica.deployment,
                bundle_digest=replica.assignment.bundle_digest,
                state=replica.state,
                reason=replica.reason,
                slots=replica.assignment.slots,
                model_metadata=replica.model_metadata,
                model_config=replica.model_config,
                failed_count=replica.failed_count,
                crashed_count=replica.crashed_count,
            )
            for replica in self.reconciler.replicas.values()
        ]

    async def _put(self, what: str, put: Callable[[bytes], Awaitable[None]], value: bytes) -> bool:
        try:
            await put(value)
        except Exception as error:  # noqa: BLE001  # the bus comes back, or the lease expires
            log.warning("not reported", what=what, error=repr(error))
            return False
        return True
