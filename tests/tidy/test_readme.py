"""What the README shows as output is what comes."""

from __future__ import annotations

import re
from pathlib import Path

from busbar_billing.domain.audit.findings import Check

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
_AUDIT_ROW = re.compile(r"^(\S.*?) {2,}ok +[\d,]+ +0  (.+)$", re.MULTILINE)


def test_the_audit_shows_every_check() -> None:
    shown = _AUDIT_ROW.findall(README.partition("$ ./just busbar audit\n")[2].partition("```")[0])
    # What nobody was given cannot be spent: without promotional credit there is no such row.
    made = [check for check in Check if check is not Check.CREDITS_SPENT]

    assert shown == [(check.replace("_", " "), check.says) for check in made]
