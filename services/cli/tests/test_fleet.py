"""What the fleet's table says of nodes that were told something."""

from __future__ import annotations

import pytest
from busbar_cli.api import Json
from busbar_cli.commands.fleet import add_orders, why

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


def test_a_node_that_was_told_nothing_says_itself_what_is_wrong() -> None:
    node: Json = {"node": "r1.s1.n1", "reason": "silent", "triton_reason": ""}
    add_orders([node], [])

    assert why(node) == "silent"
