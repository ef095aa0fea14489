"""How many requests a target answered well, by its own count.

A gRPC call that fails has HTTP status 200 like one that succeeds, and h2load
reads no trailers: a target that refused everything would look fast.
"""

from __future__ import annotations

from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

_TIMEOUT_S = 10


def by_triton(metrics_address: str, model: str) -> float:
    """What Triton says to have inferred with a model."""
    return _total(f"http://{metrics_address}/metrics", "nv_inference_request_success", model=model)


def by_gateway(ops_url: str, model: str) -> float:
    """What the gateway says to have answered in full of a model."""
    name = "busbar_gateway_requests"
    return _total(f"{ops_url}/metrics", name, deployment=model, outcome="completed")


def _total(url: str, name: str, **labels: str) -> float:
    with urlopen(url, timeout=_TIMEOUT_S) as answer:
        text = answer.read().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        if family.name == name
        for sample in family.samples
        if sample.name == f"{name}_total" and labels.items() <= sample.labels.items()
    )
