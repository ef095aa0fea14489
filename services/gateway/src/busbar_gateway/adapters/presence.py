"""Saying that this gateway is alive, and knowing how many others are."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from busbar_contracts.gateway.v1.status_pb2 import (
    DeploymentLoad,
    GatewayStatus,
    NodeTrouble,
    TenantDemand,
    VersionOutcomes,
)
from busbar_messaging import topology
from busbar_messaging.background import rest_s
from busbar_messaging.bucket_changes import Change, Deleted, Put
from busbar_messaging.hearing import HearingClock
from busbar_messaging.watching import follow
from google.protobuf.message import DecodeError
from nats.aio.client import Client
from nats.errors import Error as NatsError

from busbar_gateway.adapters.bus_clock import BusClock
from busbar_gateway.domain.limits import Demand
from busbar_gateway.domain.sharing import Peer
from busbar_gateway.usecases.admitting import Admissions
from busbar_gateway.usecases.dispatcher import Dispatcher
from busbar_gateway.usecases.limiting import Limiting
from busbar_gateway.usecases.loads import Load

log = structlog.get_logger()

_NS_PER_S = 1_000_000_000
_STALE_S = 30.0
"""An entry older than this is what a gateway left behind, not a sign of life."""
_APART_S = 0.1
"""The least time between two heartbeats."""
_SUSPECT_AFTER_S = topology.SUSPECT_AFTER.total_seconds()


@dataclass(frozen=True, slots=True)
class _Heard:
    """What another gateway last said."""

    at: float
    region: str
    demands: dict[str, int]
    """Requests in flight and waiting, by deployment."""


class Gateways:
    """The gateways of all regions, by their heartbeats.

    Silence is counted only while anything is heard, if only our own heartbeat: where a bus elects
    its leaders nobody is, and a gateway that took the others for gone would take their share.
    """

    def __init__(
        self,
        region: str,
        gateway_id: str,
        limiting: Limiting,
        clock: BusClock,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._hearing = HearingClock()
        self._limiting = limiting
        self._clock = clock
        self._region = region
        self._own = gateway_id
        self._heard: dict[str, _Heard] = {}
        self._runs: dict[str, tuple[str, float]] = {}
        """Every gateway of every region: its run, and when it was last heard of."""
        self._reading_since: float | None = None

    def count(self) -> int:
        """Gateways of this region, itself included."""
        return 1 + sum(heard.region == self._region for heard in self._listened())

    def alive(self) -> frozenset[str]:
        """The other gateways that share the slots with this one."""
        horizon = self._horizon()
        return frozenset(name for name, heard in self._heard.items() if heard.at > horizon)

    def others(self, deployment: str) -> list[Peer]:
        """The others, with what they ask of a deployment."""
        return [Peer(one.region, one.demands.get(deployment, 0)) for one in self._listened()]

    def is_gone(self, gateway_id: str, run_id: str) -> bool:
        """Whether that start of a gateway surely ended: silent, or followed by another start."""
        if self._reading_since is None or self._horizon() < self._reading_since:
            return False  # too early to tell silence from not having listened
        run, heard_at = self._runs.get(gateway_id, ("", 0.0))
        return run != run_id or heard_at < self._horizon()

    async def follow(self, client: Client) -> None:
        """Keep up with the others, for ever."""
        async for change in follow(client, topology.GATEWAYS.name):
            self.apply(change)

    def apply(self, change: Change) -> None:
        """Take one change of the bucket."""
        if isinstance(change, Put):
            self._put(change)
        elif isinstance(change, Deleted):
            self._heard.pop(change.key, None)
            self._limiting.gone(change.key)
        else:
            self._reading_since = self._hearing.now_s

    def _horizon(self) -> float:
        """Who was last heard of before this is silent."""
        return self._hearing.now_s - _SUSPECT_AFTER_S

    def _put(self, put: Put) -> None:
        try:
            status = GatewayStatus.FromString(put.value)
        except DecodeError:
            log.warning("unreadable gateway status", gateway=put.key)
            return
        if put.key == self._own:
            self._clock.echoed(status.reported_unix_ms, put.stored_unix_ns)
        if abs(self._clock.unix_ns() - put.stored_unix_ns) > _STALE_S * _NS_PER_S:
            return
        if silent_s := self._hearing.hear(self._monotonic()):
            log.warning("no gateway was heard, nor were we", silent_s=round(silent_s, 1))
        now = self._hearing.now_s
        self._runs[put.key] = (status.run_id, now)
        if put.key == self._own:
            self._limiting.forget_silent(self._horizon())
            return
        self._limiting.heard(put.key, _demands(status), now)
        demands = {load.deployment: load.in_flight + load.queued for load in status.loads}
        self._heard[put.key] = _Heard(now, status.region, demands)

    def _listened(self) -> list[_Heard]:
        """What those said that are not silent."""
        horizon = self._horizon()
        return [heard for heard in self._heard.values() if heard.at > horizon]


class Heartbeat:
    """Writes this gateway's status every second."""

    def __init__(
        self,
        client: Client,
        *,
        region: str,
        gateway_id: str,
        run_id: str,
        admissions: Admissions,
        limiting: Limiting,
        loads: dict[str, Load],
        clock: BusClock,
        dispatcher: Dispatcher,
    ) -> None:
        self._client = client
        self._troubles, self._trials = dispatcher.troubles, dispatcher.trials
        self._region = region
        self._gateway_id = gateway_id
        self._run_id = run_id
        self._admissions = admissions
        self._limiting = limiting
        self._loads = loads
        self._clock = clock
        self._subject = f"$KV.{topology.GATEWAYS.name}.{gateway_id}"
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """Beat for ever; a bus that is away is no reason to stop."""
        while True:
            self._hurry.clear()
            status = self._status()
            self._clock.sent(status.reported_unix_ms)
            await self._publish(status.SerializeToString())
            await asyncio.sleep(_APART_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest_s(topology.HEARTBEAT_INTERVAL.total_seconds())):
                    await self._hurry.wait()

    def hurry(self) -> None:
        """Beat at once: somebody asks for a deployment that sleeps."""
        self._hurry.set()

    async def withdraw(self) -> None:
        """Say goodbye, so that the others take over this gateway's share at once."""
        await self._publish(b"", {"KV-Operation": "DEL"})

    async def _publish(self, value: bytes, headers: dict[str, str] | None = None) -> None:
        if not self._client.is_connected:
            return
        try:
            await self._client.publish(self._subject, value, headers=headers)
        except (NatsError, OSError) as error:
            log.warning("heartbeat not sent", error=repr(error))

    def _status(self) -> GatewayStatus:
        return GatewayStatus(
            gateway_id=self._gateway_id,
            region=self._region,
            run_id=self._run_id,
            reported_unix_ms=self._clock.unix_ns() // 1_000_000,
            loads=[self._load(name) for name in sorted(self._names())],
            demands=self._demands(),
            troubles=[
                NodeTrouble(node=node, lost_count=lost, garbled_count=garbled)
                for node, lost, garbled in self._troubles
            ],
        )

    def _demands(self) -> list[TenantDemand]:
        return [
            TenantDemand(
                tenant_id=tenant_id,
                requests_per_minute=demand.requests_per_minute,
                tokens_per_minute=demand.tokens_per_minute,
                in_flight=demand.in_flight,
            )
            for tenant_id, demand in self._limiting.measure().items()
        ]

    def _names(self) -> set[str]:
        return {*self._loads, *self._admissions.deployments()}

    def _load(self, deployment: str) -> DeploymentLoad:
        load = self._loads.get(deployment) or Load()
        lane = self._admissions.lane(deployment)
        return DeploymentLoad(
            deployment=deployment,
            in_flight=lane.in_flight if lane else 0,
            queued=lane.waiting if lane else 0,
            completed_count=load.completed_count,
            failed_count=load.failed_count,
            refused_count=load.refused_count,
            input_tokens=load.input_tokens,
            output_tokens=load.output_tokens,
            unready_count=self._admissions.unready_count(deployment),
            versions=[
                VersionOutcomes(
                    bundle_digest=digest,
                    answered_count=one.answered,
                    failed_count=one.failed,
                    timed_count=one.timed,
                    log_latency_sum=one.log_latency_sum,
                    log_latency_square_sum=one.log_latency_square_sum,
                )
                for digest, one in self._trials.of(deployment)
            ],
        )


def _demands(status: GatewayStatus) -> dict[str, Demand]:
    return {
        said.tenant_id: Demand(said.requests_per_minute, said.tokens_per_minute, said.in_flight)
        for said in status.demands
    }
