"""What a charge is explained by."""

from __future__ import annotations

from decimal import Decimal

import pytest
from busbar_cli.api import Json
from busbar_cli.commands.money import charge_rows


def line(exact_nanos: str, component: str = "request", quantity: int = 1) -> Json:
    price = {"used_before": None, "amount_nanos": 600_000_000, "per_units": 1}
    return {
        "component": component,
        "quantity": quantity,
        "exact_nanos": exact_nanos,
        **price,
    }


@pytest.mark.parametrize(
    ("charged_nanos", "exact", "rounding"),
    [
        (1_000_000_000, ["600000000"], "400000000"),  # by a quantum of a dollar
        (0, ["400000000"], "-400000000"),
        (3, ["1.25", "1.5"], "0.25"),
        (600_000_000, ["600000000", "0"], None),
    ],
)
def test_the_lines_of_a_charge_add_up_to_it(
    charged_nanos: int, exact: list[str], rounding: str | None
) -> None:
    lines = [line(one) for one in exact]
    rows = charge_rows({"currency": "USD", "amount_nanos": charged_nanos, "lines": lines})

    assert sum(Decimal(row[-1]) for row in rows) == charged_nanos
    assert [row[-1] for row in rows if row[0] == "rounding"] == ([rounding] if rounding else [])


def test_a_charge_for_compute_is_explained_in_seconds() -> None:
    used = line("123450", "compute_second", 2_500_000)
    rows = charge_rows({"currency": "USD", "amount_nanos": 123_450, "lines": [used]})

    assert rows == [["compute_second", "", "2.5", "$0.60 / 1", "123450"]]
