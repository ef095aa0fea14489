"""The fleet and the trace store as Prometheus metrics, computed when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from busbar_telemetry.adapters.otlp_intake import SpanIntake
from busbar_telemetry.domain.events import RecentEvents
from busbar_telemetry.domain.fleet_view import DeploymentView, FleetView
from busbar_telemetry.domain.traces import TraceStore
from busbar_telemetry.usecases.view_fleet import FleetViewer

NODE_STATES = ("ok", "waiting", "draining", "suspect", "lost")


@dataclass(frozen=True, slots=True, eq=False)
class FleetCollector(Collector):
    """Register it once; labels are regions, sites, nodes and deployments, which are bounded."""

    viewer: FleetViewer
    store: TraceStore
    intake: SpanIntake
    events: RecentEvents

    def collect(self) -> Iterator[Metric]:
        """Everything, now."""
        view = self.viewer.view()
        yield from _nodes(view)
        yield from _deployments(view.deployments)
        yield from self._traces()
        yield from self._charges()

    def _traces(self) -> Iterator[Metric]:
        store, intake = self.store, self.intake
        yield _gauge("traces_held", "Traces kept now", len(store))
        yield _gauge("trace_bytes_held", "Memory accounted to kept traces", store.size_bytes)
        yield _counter("traces_evicted", "Traces dropped to stay in bounds", store.evicted_count)
        yield _counter("spans_accepted", "Spans received", intake.accepted_count)
        yield _counter("spans_refused", "Spans with invalid ids", intake.refused_count)
        yield _counter("spans_dropped", "Spans of overfull traces", store.dropped_span_count)
        yield _counter("otlp_malformed", "OTLP requests not read", intake.malformed_count)

    def _charges(self) -> Iterator[Metric]:
        count = self.events.charges_count
        yield _counter("charges_posted", "Charges announced by billing since start", count)
        amounts = CounterMetricFamily(
            "busbar_charged_nanos", "Amount of those charges, 1e-9", labels=["currency"]
        )
        for currency, nanos in self.events.charged_nanos.items():
            amounts.add_metric([currency], nanos)
        yield amounts


def _nodes(view: FleetView) -> Iterator[Metric]:
    place = ["region", "site"]
    states = GaugeMetricFamily("busbar_nodes", "Nodes by state", labels=[*place, "state"])
    slots = GaugeMetricFamily("busbar_slots", "Slots of nodes heard of", labels=place)
    ready = GaugeMetricFamily("busbar_ready_slots", "Slots behind ready replicas", labels=place)
    in_flight = GaugeMetricFamily("busbar_in_flight", "Requests in hand at nodes", labels=place)
    for region in view.regions:
        for site in region.sites:
            labels = [region.region, site.site]
            for state in NODE_STATES:
                states.add_metric([*labels, state], getattr(site.totals, f"nodes_{state}"))
            slots.add_metric(labels, site.totals.slots)
            ready.add_metric(labels, site.totals.ready_slots)
            in_flight.add_metric(labels, site.totals.in_flight)
    restarts = CounterMetricFamily(
        "busbar_triton_restarts", "Restarts of a node's Triton", labels=["node"]
    )
    for node in view.nodes:
        restarts.add_metric([node.node], node.triton_restarts)
    yield from (states, slots, ready, in_flight, restarts)


def _deployments(deployments: list[DeploymentView]) -> Iterator[Metric]:
    families = {
        "queued": "Requests waiting for admission",
        "in_flight": "Requests dispatched and unanswered",
        "ready_slots": "Requests that the ready replicas work on at once",
        "ready_replicas": "Replicas that take work",
        "replicas": "Replicas wanted",
    }
    for attribute, help_text in families.items():
        family = GaugeMetricFamily(
            f"busbar_deployment_{attribute}", help_text, labels=["deployment"]
        )
        for deployment in deployments:
            family.add_metric([deployment.deployment], getattr(deployment, attribute))
        yield family


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"busbar_telemetry_{name}", help_text, value=value)


def _counter(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(f"busbar_telemetry_{name}", help_text, value=value)
