"""What an audit looks at and what it finds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

LISTED_MAX = 1_000
"""Breaches of one check that are listed; more are counted."""


class Check(StrEnum):
    """What is checked, in the order in which it is shown."""

    TRANSFERS_BALANCED = "transfers_balanced"
    TRANSFERS_ASKED_FOR = "transfers_asked_for"
    TRANSFERS_DATED = "transfers_dated"
    BALANCES_REPLAYED = "balances_replayed"
    RECORDS_CHARGED_ONCE = "records_charged_once"
    CHARGES_RATED_AGAIN = "charges_rated_again"
    ANSWERS_CHARGED = "answers_charged"
    CHARGES_ANSWERED = "charges_answered"
    LEASES_HELD = "leases_held"
    CREDITS_SPENT = "credits_spent"
    MONTHS_ADD_UP = "months_add_up"
    ENERGY_BOOKED = "energy_booked"
    WORK_JOINED = "work_joined"
    WORK_NUMBERED = "work_numbered"
    PAYMENTS_POSTED = "payments_posted"
    PRICES_PLAIN = "prices_plain"
    PRICES_PUBLISHED = "prices_published"
    STATEMENTS_NUMBERED = "statements_numbered"
    STATEMENTS_RECOUNTED = "statements_recounted"

    @property
    def says(self) -> str:
        """What holds where it finds nothing."""
        return _SAYS[self]


_SAYS = {
    Check.TRANSFERS_BALANCED: "every transfer moves money as its kind does, and sums to zero",
    Check.TRANSFERS_ASKED_FOR: "what people and payments move was asked of billing, as it stands",
    Check.TRANSFERS_DATED: "no transfer says that it was posted before it was made",
    Check.BALANCES_REPLAYED: "balances equal the journal replayed from zero",
    Check.RECORDS_CHARGED_ONCE: "every usage record has one charge, every charge one record",
    Check.CHARGES_RATED_AGAIN: "every record rated again comes to what was posted",
    Check.ANSWERS_CHARGED: "every answer that was delivered is charged, as it was delivered",
    Check.CHARGES_ANSWERED: "every charge is of an answer that was delivered",
    Check.LEASES_HELD: "what tenants hold in leases equals their outstanding leases",
    Check.CREDITS_SPENT: "promotional credit is spent by charges and never twice",
    Check.MONTHS_ADD_UP: "months, rollups and metered quantities are what the records add up to",
    Check.ENERGY_BOOKED: "energy of measured work is booked at the price known at the time",
    Check.WORK_JOINED: "work is measured for the tenant who is charged for it",
    Check.WORK_NUMBERED: "cost records of each agent's run arrive without gaps",
    Check.PAYMENTS_POSTED: "what is kept of payments is what was posted of them",
    Check.PRICES_PLAIN: "at each moment one price is in force, and no other",
    Check.PRICES_PUBLISHED: "every price book is as billing published it",
    Check.STATEMENTS_NUMBERED: "statements are numbered without gaps",
    Check.STATEMENTS_RECOUNTED: "statements say what the journal comes to between their moments",
}


@dataclass(frozen=True, slots=True)
class Breach:
    """Something that must not be: `subject` names the row, `detail` says what is wrong with it."""

    check: Check
    subject: str
    detail: str

    @property
    def fingerprint(self) -> str:
        """The same for the same breach whenever it is found: details may name moving amounts."""
        return f"{self.check.value} {self.subject}"


@dataclass(slots=True)
class Finding:
    """One check: how many rows it looked at and what it found."""

    rows: int = 0
    listed: dict[Breach, None] = field(default_factory=dict[Breach, None])
    total: int = 0

    def add(self, breach: Breach) -> None:
        """Count it unless it is listed; list it unless there are too many."""
        if breach in self.listed:
            return
        self.total += 1
        if len(self.listed) < LISTED_MAX:
            self.listed[breach] = None


class Report:
    """What an audit has found up to now, check by check."""

    def __init__(self) -> None:
        self._findings: dict[Check, Finding] = {}
        self.leaked_attempts = 0
        self.leaked_energy_mj = 0
        """Work that brought nothing in: no breach, and listed elsewhere."""

    def looked(self, rows: int, *checks: Check) -> None:
        """These checks looked at so many rows more."""
        for check in checks:
            self.of(check).rows += rows

    def add(self, breaches: Iterable[Breach]) -> None:
        """These were found."""
        for breach in breaches:
            self.of(breach.check).add(breach)

    @property
    def findings(self) -> list[tuple[Check, Finding]]:
        """What each check found that was made, in their order."""
        return [(check, self._findings[check]) for check in Check if check in self._findings]

    @property
    def breaches(self) -> list[Breach]:
        """All that are listed."""
        return [breach for _, finding in self.findings for breach in finding.listed]

    @property
    def total(self) -> int:
        """How many there are, listed or not."""
        return sum(finding.total for _, finding in self.findings)

    def of(self, check: Check) -> Finding:
        """What one check found."""
        return self._findings.setdefault(check, Finding())
