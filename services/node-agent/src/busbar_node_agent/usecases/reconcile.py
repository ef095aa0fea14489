"""Bring what the node holds to what the scheduler wants it to hold."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import structlog
from busbar_contracts.node.v1 import status_pb2
from busbar_contracts.scheduler.v1 import plan_pb2
from busbar_errors import Rejected
from busbar_messaging.topology import queue_name

from busbar_node_agent.domain.desired import Assignment, Present, next_steps
from busbar_node_agent.domain.starting import Start
from busbar_node_agent.usecases.replica import DRAIN_TIMEOUT_S, Replica, Tools

log = structlog.get_logger()


@dataclass(slots=True)
class Reconciler:
    """The desired state as last told, and the replicas that carry it out."""

    tools: Tools
    start: Start
    replicas: dict[str, Replica] = field(default_factory=dict[str, Replica])
    revision: int = 0
    heard: bool = False
    """Whether the desired state has been read once; an empty one counts."""
    _desired: dict[str, Assignment] = field(default_factory=dict[str, Assignment])
    _fencing_token: int = 0
    _drain_s: float = DRAIN_TIMEOUT_S
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _leaving: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    def desire(self, placement: plan_pb2.NodePlacement) -> None:
        """Take over a placement, unless a newer leader has already spoken.

        Raises Rejected, and stays as it is, where a queue's name is none.
        """
        if placement.fencing_token < self._fencing_token:
            log.warning(
                "placement of a deposed leader ignored",
                fencing_token=placement.fencing_token,
                newest=self._fencing_token,
            )
            return
        desired = {each.deployment: _assignment(each) for each in placement.replicas}
        self._fencing_token = placement.fencing_token
        self.revision = placement.snapshot_revision
        within_s = placement.drain_within_ms / 1000
        self._drain_s = min(within_s, DRAIN_TIMEOUT_S) if within_s else DRAIN_TIMEOUT_S
        self._desired = desired
        self._wake.set()

    def all_heard(self) -> None:
        """The desired state was read completely; at the first time this is what it starts with."""
        self.heard = True
        self.start.begin(self._desired, asyncio.get_running_loop().time())

    def settled(self) -> list[str]:
        """Deployments whose model has come up, or was given up, as they are to be held now."""
        return [
            name
            for name, replica in self.replicas.items()
            if replica.settled and not replica.leaving
        ]

    def coming_up(self) -> list[str]:
        """Why the node is not what it was told to be as it started; at last it is, or gives up."""
        late = len(self.start.overdue)
        awaited = self.start.awaited(self._desired, asyncio.get_running_loop().time())
        if overdue := self.start.overdue[late:]:
            log.warning("ready without models that take long", deployments=overdue)
        return [f"{name}, which was here before, is {self._state(name)}" for name in awaited]

    def _state(self, deployment: str) -> str:
        replica = self.replicas.get(deployment)
        if replica is None:
            return "about to be fetched"
        state = status_pb2.ReplicaState.Name(replica.state).removeprefix("REPLICA_STATE_").lower()
        return f"{state}: {replica.reason}" if replica.reason else state

    @property
    def on_probation(self) -> bool:
        """Whether Triton is being given a model that has never been ready here."""
        return any(replica.on_probation for replica in self.replicas.values())

    def doubt(self, deployment: str) -> None:
        """An answer of its model could not be read: have it checked."""
        if (replica := self.replicas.get(deployment)) is not None:
            replica.doubt()

    async def reconcile(self) -> None:
        """Carry out the desired state, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            present = {
                name: Present(replica.assignment, replica.leaving)
                for name, replica in self.replicas.items()
            }
            self.tools.pin(self._digests())
            steps = next_steps(self._desired, present)
            for name in steps.stop:
                self._stop(self.replicas[name])
            for assignment in steps.adjust:
                self.replicas[assignment.deployment].adjust(assignment)
            for assignment in steps.start:
                self.replicas[assignment.deployment] = Replica(
                    assignment, self.tools, after=frozenset(self._leaving)
                )
            self.tools.on_change()

    def _digests(self) -> set[str]:
        present = (replica.assignment for replica in self.replicas.values())
        return {each.bundle_digest for each in (*self._desired.values(), *present)}

    async def drain(self, timeout_s: float) -> None:
        """Pull no more work, on no replica, and wait for what is in hand."""
        self._desired = {}
        await asyncio.gather(*(each.drain(timeout_s) for each in self.replicas.values()))

    async def abandon(self) -> None:
        """Leave every replica as it is, for a Triton that is about to be stopped."""
        await asyncio.gather(*(each.abandon() for each in self.replicas.values()))

    async def unload(self) -> None:
        """Take every replica out of a Triton that goes on without us."""
        await asyncio.gather(*(each.leave(0.0) for each in self.replicas.values()))

    def _stop(self, replica: Replica) -> None:
        replica.leaving = True
        task = asyncio.create_task(self._leave(replica), name=f"leave:{replica.deployment}")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _leave(self, replica: Replica) -> None:
        try:
            await replica.leave(self._drain_s)
        except Exception:  # it is not wanted any more; what remains of it must not block the next
            log.exception("replica not removed cleanly", deployment=replica.deployment)
        self.replicas.pop(replica.deployment, None)
        self._wake.set()


def _assignment(wanted: plan_pb2.ReplicaAssignment) -> Assignment:
    if wanted.queue:
        try:
            queue_name(wanted.deployment, wanted.queue)
        except ValueError as error:
            raise Rejected(str(error)) from error
    return Assignment(
        deployment=wanted.deployment,
        bundle_digest=wanted.bundle_digest,
        slots=max(1, wanted.slots),
        input_tokens_output=wanted.input_tokens_output,
        output_tokens_output=wanted.output_tokens_output,
        cached_tokens_output=wanted.cached_tokens_output,
        queue=wanted.queue,
    )
