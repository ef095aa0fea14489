"""Money as people read and write it."""

from __future__ import annotations

import pytest
from busbar_cli.amounts import read_amount, show_amount
from busbar_cli.failures import CommandError, Exit
from hypothesis import given
from hypothesis import strategies as st

INT64 = st.integers(-(2**63) + 1, 2**63 - 1)


@pytest.mark.parametrize(
    ("nanos", "currency", "shown"),
    [
        (0, "USD", "$0.00"),
        (10_000_000_000, "USD", "$10.00"),
        (1_500_000_000, "USD", "$1.50"),
        (1, "USD", "$0.000000001"),
        (-41_233, "USD", "-$0.000041233"),
        (1_234_567_890_000_000_000, "USD", "$1,234,567,890.00"),
        (3_000_000_000, "EUR", "3.00 EUR"),
    ],
)
def test_amounts_show_every_decimal_they_have(nanos: int, currency: str, shown: str) -> None:
    assert show_amount(nanos, currency) == shown


@given(INT64)
def test_what_is_shown_reads_back_as_the_same_amount(nanos: int) -> None:
    assert read_amount(show_amount(nanos)) == nanos


@pytest.mark.parametrize(
    "text",
    [
        *["", "ten", "1.0000000001", "1e400", "NaN", "Infinity", "10000000000", "1.2.3", "$"],
        *[
            "10,50",
            "1,0",
            "1,0000",
            ",5",
            "1_000",
            "\u0661\u0660",
            "1e3",
            "+5",
            "--5",
            "5.",
            "1 000",
            "1,000",
            "$1,000",
            "-12,345,678",
        ],
    ],
)
def test_what_is_not_an_exact_amount_is_refused(text: str) -> None:
    with pytest.raises(CommandError) as caught:
        read_amount(text)

    assert caught.value.exit_status is Exit.USAGE
