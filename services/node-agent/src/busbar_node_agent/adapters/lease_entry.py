"""A node's lease as an entry that is written only over what is known of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from busbar_contracts.node.v1.status_pb2 import NodeLease
from busbar_errors import Conflict
from busbar_messaging.bucket_changes import Change, Current, Put
from busbar_messaging.topology import CLAIMS, LEASES, PULSE, NodeId, entry_subject
from busbar_messaging.watching import follow
from google.protobuf.message import DecodeError
from nats.aio.client import Client
from nats.js.api import Header
from nats.js.errors import APIError

from busbar_node_agent.usecases.claiming import Held

_TIMEOUT_S = 1.0
_WRONG_LAST_SEQUENCE = {10071, 10164}


class LeaseEntry:
    """The entry of one node in the bucket of leases."""

    def __init__(self, client: Client, node: NodeId, domain: str) -> None:
        self._client = client
        self._node = node
        self._domain = domain
        self._jetstream = client.jetstream(timeout=_TIMEOUT_S)

    async def write(self, value: bytes, revision: int) -> int:
        """Write it when it stands at `revision` (0: when there is none); its new revision.

        Raises Conflict when it does not.
        """
        subject = entry_subject(LEASES, self._node.key, self._domain)
        headers = {str(Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value): str(revision)}
        try:
            ack = await self._jetstream.publish(subject, value, timeout=_TIMEOUT_S, headers=headers)
        except APIError as error:
            if error.err_code in _WRONG_LAST_SEQUENCE:
                raise Conflict(f"the lease of {self._node} was written by another run") from error
            raise
        return ack.seq

    async def claim(self, value: bytes) -> None:
        """Say that somebody else wants the name, too."""
        subject = entry_subject(CLAIMS, self._node.key, self._domain)
        await self._jetstream.publish(subject, value, timeout=_TIMEOUT_S)

    async def read(self) -> Held | None:
        """As it stands; raises TimeoutError when the bus does not say."""
        held = None
        async with asyncio.timeout(_TIMEOUT_S), contextlib.aclosing(self._follow()) as changes:
            async for change in changes:
                if isinstance(change, Current):
                    break
                held = held_by(change)
        return held

    async def follow(self) -> AsyncGenerator[Held | None]:
        """As it stands, and whatever it becomes, for ever."""
        held = None
        async with contextlib.aclosing(self._follow()) as changes:
            async for change in changes:
                if not isinstance(change, Current):
                    held = held_by(change)
                yield held

    async def pulses(self) -> AsyncGenerator[None]:
        """Each time that a scheduler shows that the bus can be written to."""
        async with contextlib.aclosing(
            follow(self._client, LEASES.name, keys=PULSE, domain=self._domain)
        ) as changes:
            async for change in changes:
                if isinstance(change, Put):
                    yield

    def _follow(self) -> AsyncGenerator[Change]:
        return follow(self._client, LEASES.name, keys=self._node.key, domain=self._domain)


def held_by(change: Change) -> Held | None:
    """Who holds the name by this change of its lease."""
    if not isinstance(change, Put):
        return None
    try:
        lease = NodeLease.FromString(change.value)
    except DecodeError:
        return Held("", change.revision)
    return Held(lease.agent_run_id, change.revision, lease.released)
