"""Prometheus metrics of the agent, read from its state when they are scraped."""

from __future__ import annotations

from collections.abc import Iterable

from busbar_contracts.node.v1 import status_pb2
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from busbar_node_agent.usecases.report import Reporter


class AgentCollector(Collector):
    """Reads the counters that the hot path keeps as plain integers."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def collect(self) -> Iterable[Metric]:
        """The metrics now."""
        work, supervisor = self._reporter.work, self._reporter.supervisor
        attempts = CounterMetricFamily(
            "busbar_agent_attempts", "Attempts that ended", labels=["outcome"]
        )
        attempts.add_metric(["finished"], work.finished_count)
        for kind, count in work.failed_by_kind.items():
            attempts.add_metric([kind.value.lower()], count)
        yield attempts
        yield GaugeMetricFamily("busbar_agent_in_flight", "Attempts in hand", len(work))
        yield CounterMetricFamily(
            "busbar_agent_compute_seconds", "Time in calls of Triton", work.compute_us / 1e6
        )
        yield CounterMetricFamily(
            "busbar_agent_queue_seconds", "Time from pull to call", work.queue_us / 1e6
        )
        yield CounterMetricFamily(
            "busbar_agent_triton_restarts", "Restarts of Triton", supervisor.restarts
        )
        ready = supervisor.state == status_pb2.TRITON_STATE_READY
        yield GaugeMetricFamily("busbar_agent_triton_ready", "Whether Triton answers", int(ready))
        yield self._replicas()

    def _replicas(self) -> Metric:
        replicas = GaugeMetricFamily(
            "busbar_agent_replica_slots", "Slots of each replica", labels=["deployment", "state"]
        )
        for replica in self._reporter.reconciler.replicas.values():
            state = status_pb2.ReplicaState.Name(replica.state).removeprefix("REPLICA_STATE_")
            replicas.add_metric([replica.deployment, state.lower()], replica.assignment.slots)
        return replicas
