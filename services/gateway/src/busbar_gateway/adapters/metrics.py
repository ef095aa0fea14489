"""What Prometheus reads from the gateway."""

from __future__ import annotations

import asyncio

from busbar_errors import Unavailable
from prometheus_client import Counter, Gauge, Histogram

from busbar_gateway.domain.admission import Lane
from busbar_gateway.domain.failures import InsufficientQuota, answer_for
from busbar_gateway.domain.policies import Band
from busbar_gateway.usecases.calls import InferenceCall
from busbar_gateway.usecases.charging import Delivered
from busbar_gateway.usecases.loads import Load

_LATENCY_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300,
)  # fmt: skip
_QUEUE_BUCKETS_S = (0.001, 0.01, 0.1, 0.5, 1, 5, 30, 300)
_SERVER_ERROR = 500


class Metrics:
    """Counts requests, for Prometheus and for the heartbeat. Make one in a process."""

    def __init__(self) -> None:
        self.loads: dict[str, Load] = {}
        self._counts: dict[tuple[str, str, str], Counter] = {}
        self._latencies: dict[str, Histogram] = {}
        self._requests = Counter(
            "busbar_gateway_requests_total",
            "Inference requests by how they ended.",
            ["deployment", "api", "outcome"],
        )
        self._latency = Histogram(
            "busbar_gateway_request_seconds",
            "From the request's arrival to the end of its answer.",
            ["deployment"],
            buckets=_LATENCY_BUCKETS_S,
        )
        self._redispatches = Counter(
            "busbar_gateway_redispatches_total",
            "Requests sent out again, by cause.",
            ["deployment", "cause"],
        )
        self._in_flight = Gauge(
            "busbar_gateway_in_flight", "Requests dispatched and unanswered.", ["deployment"]
        )
        self._queued = Gauge(
            "busbar_gateway_queued", "Requests waiting for a slot.", ["deployment"]
        )
        self._clock = Gauge(
            "busbar_gateway_clock_ahead_seconds", "How far this host's clock is ahead of the bus's."
        )
        queue = Histogram(
            "busbar_gateway_queue_seconds",
            "How long admitted requests waited for their turn, by priority band.",
            ["band"],
            buckets=_QUEUE_BUCKETS_S,
        )
        self._queue = [queue.labels(band.name.lower()) for band in Band]
        self._commit = Histogram(
            "busbar_gateway_usage_commit_seconds",
            "From publishing a batch of usage records to its acknowledgement.",
            buckets=_LATENCY_BUCKETS_S,
        )
        self._committed = Counter(
            "busbar_gateway_usage_committed_total", "Usage records and voids made durable."
        )

    def ended(
        self, call: InferenceCall, error: BaseException | None, delivered: Delivered, total_s: float
    ) -> None:
        """Count one request."""
        deployment = call.route.deployment
        load = self.loads.get(deployment)
        if load is None:
            load = self.loads.setdefault(deployment, Load())
            self._latencies[deployment] = self._latency.labels(deployment)
        outcome = _outcome(error)
        if outcome == "completed":
            load.completed_count += 1
            load.input_tokens += delivered.input_tokens
            load.output_tokens += delivered.output_tokens
            self._latencies[deployment].observe(total_s)
        elif outcome == "refused":
            load.refused_count += 1
        else:
            load.failed_count += 1
        self._count(deployment, call.api, outcome).inc()

    def admitted(self, band: Band, queued_s: float) -> None:
        """Count one request that got its turn."""
        self._queue[band].observe(queued_s)

    def _count(self, deployment: str, api: str, outcome: str) -> Counter:
        """The counter of these labels; looking it up in the library costs ten times as much."""
        key = (deployment, api, outcome)
        found = self._counts.get(key)
        if found is None:
            found = self._counts[key] = self._requests.labels(*key)
        return found

    def redispatched(self, deployment: str, cause: str) -> None:
        """Count a request that went out again."""
        self._redispatches.labels(deployment, cause).inc()

    def committed(self, records: int, took_s: float) -> None:
        """Count a batch of usage records."""
        self._commit.observe(took_s)
        self._committed.inc(records)

    def clock_ahead(self, seconds: float) -> None:
        """Show how far this host's clock is ahead of the bus's."""
        self._clock.set(seconds)

    def depth(self, deployment: str, lane: Lane) -> None:
        """Show what a deployment has out and waiting."""
        self._in_flight.labels(deployment).set(lane.in_flight)
        self._queued.labels(deployment).set(lane.waiting)


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "completed"
    if isinstance(error, asyncio.CancelledError):
        return "abandoned"
    if isinstance(error, (Unavailable, InsufficientQuota)):
        return "refused"
    return "failed" if answer_for(error).http_status >= _SERVER_ERROR else "rejected"
