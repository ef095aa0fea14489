"""`./just bench`: usage that comes while billing posts the backlog of an outage.

The real service on a bus and a database of its own is stopped while a backlog is written, and
started again: once with nothing else to do, once while fresh records come one by one. Each round
does both, in turns. The lag of a fresh record is from its PubAck until another connection sees it.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import asyncpg
from busbar_contracts.gateway.v1 import usage_pb2
from busbar_messaging.connection import BusSettings, close, connect
from busbar_messaging.topology import BILLING_USAGE, usage_subject
from busbar_runtime.platform import Platform
from nats.js.client import JetStreamContext
from report import machine, parser, put_table
from uuid_utils.compat import uuid7

TENANTS = 50
RECORDS_A_MESSAGE = 5
OLD_AT_LEAST_S = 3.0
"""A backlog is older than what billing gathers."""
FRESH_PAUSE_S = 0.02
WAITING_MAX = 500
POLL_S = 0.02
DRAINED_WITHIN_S = 300
LAG_P99_MAX_S = 5.0
RATE_RATIO_MIN = 0.5
HEAD = ("", "records/s", "÷ alone", "fresh lag p50 s", "p99 s")
_SEEN = "SELECT request_id FROM usage_records WHERE request_id = ANY($1::uuid[])"


def record(number: int) -> usage_pb2.UsageRecord:
    """A record of one of the tenants."""
    now_ns = time.time_ns()
    return usage_pb2.UsageRecord(
        request_id=uuid7().bytes,
        tenant_id=f"bench-{number % TENANTS}",
        key_id="key_01a1fc63811973c281bc10cc6802070c",
        deployment="tiny-lm",
        price_class="chat-small",
        api="openai.chat",
        outcome=usage_pb2.USAGE_OUTCOME_COMPLETED,
        admitted_unix_ns=now_ns - 10**6,
        finished_unix_ns=now_ns,
        input_tokens=1_234,
        output_tokens=321,
        attempt=1,
        node="r1.s1.n1",
    )


@dataclass
class Fresh:
    """Records that come one by one, and how long each took."""

    waiting: dict[UUID, float] = field(default_factory=dict[UUID, float])
    lags_s: list[float] = field(default_factory=list[float])

    async def come(self, bus: JetStreamContext) -> None:
        """Until cancelled."""
        number = 0
        while True:
            if len(self.waiting) < WAITING_MAX:
                one = record(number)
                await publish(bus, [one])
                self.waiting[UUID(bytes=one.request_id)] = time.monotonic()
                number += 1
            await asyncio.sleep(FRESH_PAUSE_S)

    async def look(self, database: asyncpg.Connection) -> None:
        """Note which are posted."""
        rows = await database.fetch(_SEEN, list(self.waiting))
        now = time.monotonic()
        self.lags_s += [now - self.waiting.pop(row["request_id"]) for row in rows]


@dataclass(frozen=True)
class Drained:
    """One backlog."""

    per_s: float
    lags_s: Sequence[float] = ()


async def publish(bus: JetStreamContext, records: list[usage_pb2.UsageRecord]) -> int:
    """Commit as a gateway does; the number in the stream."""
    batch = usage_pb2.UsageRecorded(gateway_id="g1", records=records)
    return (await bus.publish(usage_subject("r1", "g1"), batch.SerializeToString())).seq


async def pile_up(bus: JetStreamContext, messages: int) -> int:
    """Write a backlog; the number of its last message."""
    began, last = time.monotonic(), 0
    for start in range(0, messages, 250):
        count = min(250, messages - start)
        batches = [[record(start + n) for n in range(RECORDS_A_MESSAGE)] for _ in range(count)]
        last = max(await asyncio.gather(*(publish(bus, batch) for batch in batches)))
    await asyncio.sleep(max(0.0, began + OLD_AT_LEAST_S - time.monotonic()))
    return last


async def drain(
    running: Platform,
    bus: JetStreamContext,
    database: asyncpg.Connection,
    messages: int,
    fresh: bool,
) -> Drained:
    """Records of a backlog posted per second, from when billing begins until it is through."""
    await running.stop("billing")
    last = await pile_up(bus, messages)
    found = Fresh()
    await running.start("billing")
    started = time.monotonic()
    coming = asyncio.create_task(found.come(bus)) if fresh else None
    while await acknowledged(bus) < last:
        await found.look(database)
        if time.monotonic() > started + DRAINED_WITHIN_S:
            raise TimeoutError("the backlog is not posted")
        await asyncio.sleep(POLL_S)
    per_s = messages * RECORDS_A_MESSAGE / (time.monotonic() - started)
    if coming is not None:
        coming.cancel()
        await asyncio.wait([coming])
    await found.look(database)
    lags_s = found.lags_s + [time.monotonic() - since for since in found.waiting.values()]
    return Drained(per_s, lags_s)


async def acknowledged(bus: JetStreamContext) -> int:
    """The stream is posted up to this number."""
    info = await bus.consumer_info(BILLING_USAGE.stream, BILLING_USAGE.durable)
    return info.ack_floor.stream_seq if info.ack_floor else 0


@dataclass(frozen=True)
class Medians:
    """Records per second; seconds."""

    alone: float
    beside_fresh: float
    lag_p50_s: float
    lag_p99_s: float
    fresh: int


async def measure(running: Platform, rounds: int, messages: int) -> Medians:
    """All rounds on one platform."""
    found = running.endpoints
    settings = BusSettings(
        nats_url=found["nats"],
        nats_user="provisioner",
        nats_password=found["nats_credentials"]["provisioner"],
    )
    client = await connect(settings, "bench")
    database = await asyncpg.connect(found["postgres"])
    await database.execute(
        "INSERT INTO tenants (tenant_id, name, currency)"
        f" SELECT 'bench-' || n, 'bench ' || n, 'USD' FROM generate_series(0, {TENANTS - 1}) AS n"
    )
    bus = client.jetstream(timeout=30)
    alone: list[Drained] = []
    beside: list[Drained] = []
    for _ in range(rounds):
        alone.append(await drain(running, bus, database, messages, fresh=False))
        beside.append(await drain(running, bus, database, messages, fresh=True))
    await database.close()
    await close(client)
    cuts = statistics.quantiles([lag for one in beside for lag in one.lags_s], n=100)
    return Medians(
        statistics.median(one.per_s for one in alone),
        statistics.median(one.per_s for one in beside),
        cuts[49],
        cuts[98],
        sum(len(one.lags_s) for one in beside),
    )


def rows(found: Medians) -> list[list[str]]:
    """Of the table."""
    return [
        ["alone", f"{found.alone:,.0f}", "1.00", "", ""],
        [
            f"beside {1 / FRESH_PAUSE_S:.0f} fresh records/s",
            f"{found.beside_fresh:,.0f}",
            f"{found.beside_fresh / found.alone:.2f}",
            f"{found.lag_p50_s:.2f}",
            f"{found.lag_p99_s:.2f}",
        ],
    ]


def main() -> int:
    """Run it; exit 1 when a target is missed."""
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--messages", type=int, default=10_000, help="of one backlog")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="busbar-backlog-") as place:
        running = Platform(Path(place), parts=["billing", "provisioner"])
        running.launch()
        try:
            found = asyncio.run(measure(running, options.rounds, options.messages))
        finally:
            running.shutdown()
    how = (
        "`tests/benchmarks/backlog.py`, part of `./just bench`: the real service catches up after "
        "an outage, its start included; a lag is from a fresh record's PubAck until it is posted. "
        f"Medians of {options.rounds} rounds of {options.messages * RECORDS_A_MESSAGE:,} records "
        f"in {options.messages:,} messages, {found.fresh} fresh ones, {machine()}."
    )
    put_table("A backlog of usage", how, HEAD, rows(found), written=not options.no_report)
    if found.lag_p99_s > LAG_P99_MAX_S or found.beside_fresh < RATE_RATIO_MIN * found.alone:
        sys.stderr.write(
            f"missed: fresh p99 of {LAG_P99_MAX_S} s, {RATE_RATIO_MIN} of the rate alone\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
