"""What the fleet's table says of nodes that were told something."""

from __future__ import annotations

import pytest
from busbar_cli.api import Json
from busbar_cli.commands.deployments import standing
from busbar_cli.commands.fleet import add_orders, promised, why
from busbar_cli.output import silent

SILENT = "it holds its lease, but fell silent about 3 requests in a row"


@pytest.mark.parametrize(
    ("order", "reason", "said"),
    [
        pytest.param("quarantine", SILENT, f"quarantine: {SILENT}", id="quarantine"),
        pytest.param("cordon", "", "cordon", id="cordon"),
        pytest.param("serve", f"was out: {SILENT}", "its Triton starts", id="it-is-over"),
    ],
)
def test_what_a_node_was_told_is_shown_with_the_reason(order: str, reason: str, said: str) -> None:
    node: Json = {"node": "r1.s1.n1", "reason": "", "triton_reason": "its Triton starts"}
    add_orders([node], [{"node": "r1.s1.n1", "order": {"order": order, "reason": reason}}])

    assert why(node) == said


def test_an_explanation_names_where_a_model_failed_and_what_was_rolled_back() -> None:
    said = standing(
        {
            "name": "m", "placed": 1, "wanted": 1, "promised": 1, "survivors": 0, "open_nodes": 0,
            "scaling": "", "rollout": "", "revenue_nanos_per_h": 0, "unplaced": [], "never": "",
            "kept_off": [{"node": "r1.s1.n1", "for_s": 42, "reason": "no such GPU"}],
            "rolled_back": {"bundle": "sha256:" + "a" * 64, "reason": "9 of 9 requests failed"},
        }
    )  # fmt: skip

    assert "kept off r1/s1/n1 for 42 s more: no such GPU" in said
    assert "was rolled back: 9 of 9 requests failed" in said


def test_a_node_that_was_told_nothing_says_itself_what_is_wrong() -> None:
    node: Json = {"node": "r1.s1.n1", "reason": "silent", "triton_reason": ""}
    add_orders([node], [])

    assert why(node) == "silent"


@pytest.mark.parametrize(
    ("deployment", "said"),
    [
        ({"replicas": 2}, "2"),
        ({"replicas": 2, "max_replicas": 2}, "2"),
        ({"replicas": 1, "max_replicas": 3}, "1-3"),
    ],
)
def test_a_deployment_that_follows_demand_says_how_far(deployment: Json, said: str) -> None:
    assert promised(deployment) == said


def test_what_a_node_does_is_not_known_while_it_is_not_heard() -> None:
    assert [state for state in ("ok", "waiting", "draining", "restarting") if silent(state)] == []
    assert silent("suspect")
    assert silent("lost")
