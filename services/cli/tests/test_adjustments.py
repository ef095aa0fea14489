"""What people do to a tenant's money, as it is told."""

from __future__ import annotations

from busbar_cli.api import Json
from busbar_cli.commands.adjustments import what_goes_again

OURS: Json = {"account": "revenue", "tenant_id": None, "amount_nanos": -13_000, "currency": "USD"}
THEIRS: Json = {**OURS, "account": "tenant_available", "tenant_id": "mo", "amount_nanos": 13_000}


def test_what_a_tenant_does_not_keep_of_a_refund_is_said() -> None:
    refund = {"postings": [OURS, THEIRS], "ended_credit_nanos": 12_000}

    assert what_goes_again(refund) == (
        "\n$0.000012 of it was promotional credit that has expired or was withdrawn, and is taken "
        "back; to give it all the same: busbar credit give mo 0.000012 --expires TIME "
        "--reference NAME"
    )
    assert what_goes_again({**refund, "ended_credit_nanos": 0}) == ""
