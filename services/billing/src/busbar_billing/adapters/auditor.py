"""Audits that people ask for: one at a time, in the background, looked at while they run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from uuid import UUID

import structlog
from busbar_errors import Conflict, NotFound, Unavailable
from busbar_messaging.background import end
from uuid_utils.compat import uuid7

from busbar_billing.domain.audit.findings import Check, Report
from busbar_billing.usecases.audit import Books, audit
from busbar_billing.usecases.audit_seals import Seals

log = structlog.get_logger()

SETTLED_AFTER = timedelta(minutes=5)
"""A posting is committed or undone long before: statements end after 10 s, a transaction in which
nothing happens after 30 s."""
SEALED_AFTER = timedelta(days=1)
"""What is older is seldom added to: late records and charges taken back come within a day."""
_KEPT_MAX = 20
_RANDOM_BITS = 80


class State(StrEnum):
    """How far an audit is."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(slots=True)
class Run:
    """One audit."""

    audit_id: str
    started_at: datetime
    rows_expected: int = 0
    rows: int = 0
    doing: Check | None = None
    state: State = State.RUNNING
    reason: str = ""
    finished_at: datetime | None = None
    report: Report = field(default_factory=Report)
    full: bool = False
    unchanged_rows: int = 0
    """Those that are sealed and as they were, so that they were not walked."""
    seals_broken: bool = False

    def progress(self, doing: Check, rows: int) -> None:
        """Note how far it is."""
        self.doing = doing
        self.rows += rows


class Auditor:
    """Runs audits and remembers the last of them."""

    def __init__(self, books: Books, seals: Seals, sealed_after: timedelta = SEALED_AFTER) -> None:
        self.books = books
        self._seals = seals
        self._sealed_after = sealed_after
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, *, full: bool = False) -> Run:
        """Begin an audit, or return the one that runs; `full`: nothing is taken for granted.

        Raises Conflict when the one that runs takes more for granted than this one may.
        """
        for run in self._runs.values():
            if run.state is State.RUNNING and full and not run.full:
                raise Conflict(
                    f"audit {run.audit_id} runs, which relies on seals: "
                    "ask for a full one when it has ended"
                )
            if run.state is State.RUNNING:
                return run
        run = Run(f"aud_{uuid7().hex}", datetime.now(UTC), full=full)
        self._runs[run.audit_id] = run
        while len(self._runs) > _KEPT_MAX:
            del self._runs[next(iter(self._runs))]
        task = asyncio.create_task(self._carry_out(run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return run

    def run(self, audit_id: str) -> Run:
        """One of the last audits; raise NotFound when it is not known (any more)."""
        run = self._runs.get(audit_id)
        if run is None:
            raise NotFound(f"no audit {audit_id[:40]!r} is known since billing started")
        return run

    async def close(self) -> None:
        """Stop what runs."""
        await end(self._tasks)

    async def _carry_out(self, run: Run) -> None:
        try:
            run.rows_expected = 2 * await self.books.journal.rows()
            await self._audit(run)
            run.state = State.FINISHED
        except Unavailable as error:
            run.state, run.reason = State.FAILED, error.reason
            log.warning("audit not finished", reason=error.reason)
        except Exception:
            run.state, run.reason = State.FAILED, "an error of the auditor; see billing's log"
            log.exception("audit failed")
        finally:
            run.finished_at = datetime.now(UTC)

    async def _audit(self, run: Run) -> None:
        upto = id_at(run.started_at - self._sealed_after)
        closed = await self._seals.look(
            upto, lambda rows: run.progress(Check.TRANSFERS_BALANCED, rows), full=run.full
        )
        run.unchanged_rows, run.seals_broken = closed.unchanged_rows, closed.broken is not None
        if closed.broken:
            log.warning(
                "rows that were audited have changed: audited from zero",
                part=closed.broken.part.value,
                upto=str(closed.broken.upto),
            )
        settled = id_at(run.started_at - SETTLED_AFTER)
        await audit(self.books, settled, run.report, run.progress, closed)
        if not run.report.total:
            await self._seals.keep(closed)


def moment_of(transfer_id: UUID) -> datetime:
    """When an UUIDv7 was made."""
    return datetime.fromtimestamp((transfer_id.int >> _RANDOM_BITS) / 1_000, UTC)


def id_at(moment: datetime) -> UUID:
    """The first UUIDv7 of a moment: RFC 9562, section 5.7."""
    return UUID(int=int(moment.timestamp() * 1_000) << _RANDOM_BITS)
