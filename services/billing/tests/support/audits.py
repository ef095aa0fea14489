"""The auditor's word on the books of a test."""

from __future__ import annotations

from billing_parts import Service
from harness.polling import eventually

AUDITED_S = 30


async def assert_audit_clean(billing: Service) -> None:
    """Nothing is wrong with the books."""
    begun = await billing.json("POST", "/audits")
    report = await eventually(
        lambda: billing.json("GET", f"/audits/{begun['audit_id']}"),
        within_s=AUDITED_S,
        what="the audit ends",
        until=lambda one: one["state"] != "running",
    )
    breaches = [one for check in report["checks"] for one in check["breaches"]]
    assert (report["state"], breaches) == ("finished", []), f"{report['state']}: {breaches}"
