"""Routes of the auditor."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter
from pydantic import BaseModel

from busbar_billing.adapters.auditor import Auditor, Run, State, moment_of
from busbar_billing.adapters.postgres.audit_walks import AuditStanding, AuditWalks
from busbar_billing.domain.audit.findings import Check, Finding


class BreachAnswer(BaseModel):
    """Something that must not be."""

    subject: str
    detail: str


class CheckAnswer(BaseModel):
    """One check: `breaches` lists the first thousand of `breaches_total`."""

    check: Check
    says: str
    rows: int
    breaches_total: int
    breaches: list[BreachAnswer]


class AuditAnswer(BaseModel):
    """An audit. `clean` is null until it is finished; `rows_expected` is an estimate. What leaked
    was worked and brought nothing in: no breach, see /admin/v1/leakage. `unchanged_rows` were
    sealed by an earlier audit and are as they were; `seals_broken`: some are not, so everything was
    read again."""

    audit_id: str
    state: State
    reason: str
    clean: bool | None
    started_at: datetime
    finished_at: datetime | None
    doing: Check | None
    rows: int
    rows_expected: int
    breaches_total: int
    leaked_attempts: int
    leaked_energy_mj: int
    unchanged_rows: int
    seals_broken: bool
    checks: list[CheckAnswer]


class KnownBreachAnswer(BaseModel):
    """Something that must not be, found in passing."""

    check: str
    subject: str
    detail: str
    found_at: datetime


class StandingAnswer(BaseModel):
    """What the audit that never ends knows: all up to `followed_to`, `lag_s` seconds ago, is
    checked, and once everything from zero, beginning at `swept_at`. Null: not yet."""

    followed_to: datetime | None
    lag_s: float | None
    swept_at: datetime | None
    breaches: list[KnownBreachAnswer]


def audit_routes(auditor: Auditor, walks: AuditWalks) -> APIRouter:
    """GET, POST /audits, GET /audits/{id}."""
    router = APIRouter(prefix="/admin/v1/audits", tags=["audit"])

    @router.post("", status_code=202)
    async def start(*, full: bool = False) -> AuditAnswer:
        """Audit everything in the background, or say which audit does so already. What an earlier
        one sealed is compared with its seals, unless it is to be `full`: walked from zero; 409
        while one runs that is not."""
        return show_run(auditor.start(full=full))

    @router.get("")
    async def known() -> StandingAnswer:
        """Read what the continuous audit knows."""
        return show_standing(await walks.standing(), datetime.now(UTC))

    @router.get("/{audit_id}")
    async def get(audit_id: str) -> AuditAnswer:
        """Read one audit."""
        return show_run(auditor.run(audit_id))

    return router


def show_standing(standing: AuditStanding, now: datetime) -> StandingAnswer:
    """What is known without asking for an audit."""
    followed = None if standing.followed_to is None else moment_of(standing.followed_to)
    return StandingAnswer(
        followed_to=followed,
        lag_s=None if followed is None else (now - followed).total_seconds(),
        swept_at=standing.swept_at,
        breaches=[
            KnownBreachAnswer(
                check=one.check, subject=one.subject, detail=one.detail, found_at=one.found_at
            )
            for one in standing.breaches
        ],
    )


def show_run(run: Run) -> AuditAnswer:
    """How far an audit is and what it found."""
    report = run.report
    finished = run.state is State.FINISHED
    return AuditAnswer(
        audit_id=run.audit_id,
        state=run.state,
        reason=run.reason,
        clean=not report.total if finished else None,
        started_at=run.started_at,
        finished_at=run.finished_at,
        doing=run.doing,
        rows=run.rows,
        rows_expected=max(run.rows, run.rows_expected),
        breaches_total=report.total,
        leaked_attempts=report.leaked_attempts,
        leaked_energy_mj=report.leaked_energy_mj,
        unchanged_rows=run.unchanged_rows,
        seals_broken=run.seals_broken,
        checks=[show_check(check, finding) for check, finding in report.findings],
    )


def show_check(check: Check, finding: Finding) -> CheckAnswer:
    """One check."""
    return CheckAnswer(
        check=check,
        says=check.says,
        rows=finding.rows,
        breaches_total=finding.total,
        breaches=[BreachAnswer(subject=one.subject, detail=one.detail) for one in finding.listed],
    )
