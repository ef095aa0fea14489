"""A statement with something in each of its sections, and a credit note on it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime

from busbar_billing.domain.ledger import TransferKind
from busbar_billing.domain.prices import Component
from busbar_billing.domain.statements import (
    Charged,
    Facts,
    Month,
    Movement,
    Party,
    Tax,
    Used,
    close,
)
from busbar_billing.usecases.statements import Issued

DAY = date(2026, 9, 3)
FACTS = Facts(
    month=Month(date(2026, 9, 1)),
    currency="USD",
    opening_nanos=4_250_000_000,
    movements=[
        Movement(TransferKind.TOP_UP, DAY, "wire 2026/17", 25 * 10**9),
        Movement(TransferKind.PROMOTIONAL_CREDIT, DAY, "welcome", 5 * 10**9),
        Movement(TransferKind.REFUND, DAY, "=cmd|' /C calc'!A0", 12_000_000),
    ],
    charged=[
        Charged("tiny-lm", False, 48_211, -4_321_000_123),
        Charged("all-minilm-l6-v2", False, 1_200_345, -812_000_000),
        Charged("tiny-lm", True, 3, -1_200),
    ],
    used=[
        Used("tiny-lm", False, Component.INPUT_TOKEN, 21_404_000, 100_000_000, 10**6),
        Used("tiny-lm", False, Component.OUTPUT_TOKEN, 5_451_500, 400_000_000, 10**6),
        Used("all-minilm-l6-v2", False, Component.INPUT_TOKEN, 40_600_000, 20_000_000, 10**6),
        Used("simple", False, Component.COMPUTE_SECOND, 1_234_567, 50_000_000, 1_000),
        Used("tiny-lm", True, Component.INPUT_TOKEN, 12, 100_000_000, 10**6),
    ],
    journal_closing_nanos=29_128_998_677,
)
ISSUED = Issued(
    number="BB-000042",
    issued_at=datetime(2026, 10, 1, 6, 12, tzinfo=UTC),
    issuer=Party("default", "Busbar Inference GmbH", ("Kraftwerkstraße 7", "10997 Berlin"), "DE42"),
    customer=Party("acme", "Ácme <b>& Søn</b> Łódź Ωmega", ("Main Street 1", "Fargo"), "US-1"),
    statement=close(FACTS, Tax("VAT", 190_000, "VAT as of § 13 UStG.")),
)
NOTE = replace(
    ISSUED, number="BB-000043", corrects="BB-000042", credited_nanos=10**9, reason="slow answers"
)
