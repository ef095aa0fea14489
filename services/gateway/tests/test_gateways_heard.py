"""Which other gateways there are, through silence of one of them and of the bus."""

from __future__ import annotations

import itertools

import pytest
from busbar_contracts.gateway.v1.status_pb2 import GatewayStatus, TenantDemand
from busbar_gateway.adapters.bus_clock import BusClock
from busbar_gateway.adapters.presence import Gateways
from busbar_gateway.domain.policies import Policy
from busbar_gateway.usecases.limiting import Limiting
from busbar_messaging.bucket_changes import Current, Deleted, Put

UNIX_S = 1_795_000_000
RUN = "1"


class Bucket:
    """What a gateway called "own" sees of the bucket, and when."""

    def __init__(self) -> None:
        self.at = 100.0
        self._revisions = itertools.count(1)
        clock = BusClock(unix_ns=self._unix_ns, monotonic=lambda: self.at)
        limiting = Limiting(lambda _: Policy())
        self.gateways = Gateways("r1", "own", limiting, clock, monotonic=lambda: self.at)
        self.gateways.apply(Current())

    def beats(self, *names: str, until: float) -> None:
        """Each second a heartbeat of these, up to and with that moment."""
        while self.at < until:
            self.at = min(until, self.at + 1.0)
            for name in names:
                status = GatewayStatus(
                    gateway_id=name,
                    region="r1",
                    run_id=RUN,
                    demands=[TenantDemand(tenant_id="t", requests_per_minute=1)],
                )
                put = Put(name, status.SerializeToString(), next(self._revisions), self._unix_ns())
                self.gateways.apply(put)

    def _unix_ns(self) -> int:
        return round((UNIX_S + self.at) * 1e9)


@pytest.fixture
def bucket() -> Bucket:
    made = Bucket()
    made.beats("own", "other", until=110.0)
    return made


def test_a_gateway_that_falls_silent_is_gone_after_four_seconds(bucket: Bucket) -> None:
    bucket.beats("own", until=113.9)
    before = bucket.gateways.count(), bucket.gateways.is_gone("other", RUN)
    bucket.beats("own", until=114.1)

    assert before == (2, False)
    assert bucket.gateways.count() == 1
    assert bucket.gateways.alive() == frozenset()
    assert bucket.gateways.is_gone("other", RUN)


def test_a_bus_that_falls_silent_takes_no_gateway_away(bucket: Bucket) -> None:
    bucket.at = 117.0
    during = bucket.gateways.count(), bucket.gateways.is_gone("other", RUN)
    bucket.beats("own", until=120.0)

    assert during == (2, False)
    assert bucket.gateways.alive() == {"other"}
    assert not bucket.gateways.is_gone("other", RUN)


def test_one_that_is_not_heard_after_a_silence_of_the_bus_is_gone(bucket: Bucket) -> None:
    bucket.at = 117.0
    bucket.beats("own", until=126.0)

    assert bucket.gateways.count() == 1
    assert bucket.gateways.is_gone("other", RUN)


def test_one_that_says_goodbye_is_not_waited_for(bucket: Bucket) -> None:
    bucket.gateways.apply(Deleted("other"))

    assert bucket.gateways.count() == 1
