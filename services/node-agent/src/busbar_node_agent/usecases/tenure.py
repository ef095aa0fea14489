"""Holding a node's name: one run of an agent at a time, as the hub's bucket decides. See ADR 59."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
from busbar_contracts.node.v1.status_pb2 import NodeClaim, NodeLease
from busbar_errors import BusbarError, Conflict
from busbar_messaging.background import end

from busbar_node_agent.usecases.claiming import Claimant, Held

log = structlog.get_logger()

_LOOK_EVERY_S = 0.25
_CLAIM_EVERY_S = 5.0


class NameLost(BusbarError):
    """Another run of an agent holds the node's name now."""


class Entry(Protocol):
    """The node's lease on the bus, as adapters.lease_entry.LeaseEntry has it."""

    async def write(self, value: bytes, revision: int) -> int: ...
    async def claim(self, value: bytes) -> None: ...
    async def read(self) -> Held | None: ...
    def follow(self) -> AsyncGenerator[Held | None]: ...
    def pulses(self) -> AsyncGenerator[None]: ...


@dataclass(slots=True)
class Tenure:
    """One run's hold of its node's name: `take` it, `put` each lease, stop when it is `lost`."""

    node: str
    run_id: str
    host: str
    entry: Entry
    reason: str = "the node's name was not asked for yet"
    """Why it is not held; empty once it is."""
    _revision: int = 0
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _lost: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, dead_run_id: str) -> None:
        """Wait until the name is free, for ever, and take it.

        The run `dead_run_id` is known to have ended: nobody waits for its silence.
        """
        claimant, refused, claimed_s = Claimant(frozenset({self.run_id, dead_run_id})), "", 0.0
        tasks = [asyncio.create_task(each) for each in self._hearing(claimant)]
        try:
            while not (claimant.may_take(time.monotonic()) and await self._taken(claimant.held)):
                if claimant.alive and claimant.held is not None:
                    if refused != claimant.held.run_id:
                        refused = claimant.held.run_id
                        self._refuse(refused)
                    if time.monotonic() - claimed_s >= _CLAIM_EVERY_S:
                        claimed_s = time.monotonic()
                        await self._claim(refused)
                await asyncio.sleep(_LOOK_EVERY_S)
        finally:
            await end(tasks)
        self.reason = ""

    async def put(self, value: bytes) -> None:
        """Write the lease; raises NameLost when another run has written it meanwhile."""
        async with self._writing:
            if self._lost.is_set():
                raise NameLost(self.reason)
            try:
                self._revision = await self.entry.write(value, self._revision)
            except Conflict:
                # The bucket was made anew, or what was not acknowledged was stored all the same.
                self._revision = self._mine(await self.entry.read())
                self._revision = await self.entry.write(value, self._revision)

    def guarded(
        self, put: Callable[[bytes], Awaitable[None]]
    ) -> Callable[[bytes], Awaitable[None]]:
        """The same for what only the holder may say."""

        async def put_while_held(value: bytes) -> None:
            if self._lost.is_set():
                raise NameLost(self.reason)
            await put(value)

        return put_while_held

    async def lost(self) -> None:
        """Wait until another run holds the name; then this one must not go on."""
        await self._lost.wait()
        raise NameLost(self.reason)

    def _mine(self, held: Held | None) -> int:
        if held is None:
            return 0
        if held.run_id != self.run_id:
            self.reason = f"the name {self.node} was taken over by another run: {held.run_id}"
            self._lost.set()
            raise NameLost(self.reason)
        return held.revision

    def _hearing(self, claimant: Claimant) -> list[Coroutine[Any, Any, None]]:
        async def lease() -> None:
            async for held in self.entry.follow():
                claimant.reads(held, time.monotonic())

        async def pulses() -> None:
            async for _ in self.entry.pulses():
                claimant.pulse(time.monotonic())

        return [lease(), pulses()]

    async def _taken(self, held: Held | None) -> bool:
        first = NodeLease(node=self.node, agent_run_id=self.run_id)
        try:
            revision = held.revision if held else 0
            self._revision = await self.entry.write(first.SerializeToString(), revision)
        except Exception as error:  # noqa: BLE001  # somebody was faster, or the bus is away
            log.info("name not taken", reason=repr(error))
            return False
        return True

    def _refuse(self, holder: str) -> None:
        self.reason = f"the name {self.node} is held by another run: {holder}"
        log.error(
            "another agent holds this node's name",
            holder_run_id=holder,
            run_id=self.run_id,
            advice="give each node a name of its own; this one waits and takes no work",
        )

    async def _claim(self, holder: str) -> None:
        claim = NodeClaim(
            node=self.node, agent_run_id=self.run_id, host=self.host, holder_run_id=holder
        )
        with contextlib.suppress(Exception):
            await self.entry.claim(claim.SerializeToString())
