"""Post real usage and die at the n-th await of it, for every n until nothing is left to die at.

Run as a program with the service's environment, but as a user of the bus who
may publish, too. For each point a fork of it publishes a batch with one of
everything, takes it from the stream as billing does, and kills itself with
SIGKILL: at even points when the posting waits for something that it has sent,
at odd ones when it has the answer and sent nothing since. What was published is
written to standard output, one JSON object a line.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any

import structlog
from busbar_billing.adapters.bus.consuming import Consumer, Refusal
from busbar_billing.adapters.bus.usage import UsagePoster
from busbar_billing.adapters.postgres.database import open_database
from busbar_billing.adapters.postgres.journal import Journal
from busbar_billing.adapters.postgres.posting import Ledger
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.adapters.postgres.warrants import Warrants
from busbar_billing.usecases.post_usage import RatedRecord, Uncovered
from busbar_contracts.gateway.v1 import usage_pb2
from busbar_messaging.connection import BusSettings, close, connect
from busbar_messaging.topology import BILLING_USAGE, usage_subject
from busbar_observability.tracing import configure_tracing
from nats.aio.client import Client
from nats.aio.msg import Msg
from usage_records import answered
from uuid_utils.compat import uuid7

POINTS_MAX = 400
DONE, KILLED = 0, signal.SIGKILL


class Mortal:
    """Drives an awaitable, and kills the process at one of its suspensions once armed."""

    def __init__(self, work: Awaitable[None], point: int) -> None:
        self._work = work
        self._point = point
        self._passed = -1
        self._armed = False

    def arm(self) -> None:
        """Count from here."""
        self._armed = True

    def _pass(self) -> None:
        if self._armed:
            self._passed += 1
            if self._passed == self._point:
                os.kill(os.getpid(), signal.SIGKILL)

    def __await__(self) -> Generator[Any, Any, None]:
        """Hand every suspension on to the event loop, dying at one."""
        steps = self._work.__await__()
        sent: Any = None
        failure: BaseException | None = None
        while True:
            try:
                waiting = steps.send(sent) if failure is None else steps.throw(failure)
            except StopIteration:
                return
            self._pass()
            sent, failure = None, None
            try:
                sent = yield waiting
            except BaseException as error:  # noqa: BLE001 - handed on to where it belongs
                failure = error
            self._pass()


class Nobody:
    """Listens to what was posted and does nothing."""

    def usage_posted(self, charged: Sequence[RatedRecord]) -> None:
        """Charges were posted."""

    def charges_uncovered(self, uncovered: Sequence[Uncovered]) -> None:
        """Charges came that no lease covered."""


async def consume_until_killed(client: Client, dsn: str, warrant_key: bytes, point: int) -> None:
    """Post what is in the stream, to die at `point`; returns when it was passed unharmed."""
    async with open_database(dsn) as database:
        await database.ping()
        tracer = configure_tracing("billing", None)
        warrants = Warrants(warrant_key)
        ledger = Ledger(database, Journal(database, warrants), Prices(database, warrants))
        poster = UsagePoster(ledger, Nobody(), tracer, uuid7)

        async def handle(messages: Sequence[Msg]) -> Sequence[Refusal]:
            mortal.arm()
            consumer.stop()
            return await poster.handle(messages)

        able: Callable[[], Any] = database.wait_until_reachable
        consumer = Consumer(client, BILLING_USAGE, handle, able, gather_s=0.01)
        mortal = Mortal(consumer.run(), point)
        await mortal


async def publish(client: Client, said: dict[str, Any]) -> None:
    """A charge from a lease, one from credit, one to be taken back, and one that nobody can bill;
    the void in a message of its own."""
    leased, credited, voided = (answered(said["tenant_id"]) for _ in range(3))
    leased.lease_id = bytes.fromhex(said["lease_id"])
    poison = answered("nobody-we-know")
    batch = usage_pb2.UsageRecorded(gateway_id="g1", records=[leased, credited, poison, voided])
    void = usage_pb2.UsageVoid(
        request_id=voided.request_id, tenant_id=voided.tenant_id, reason="not delivered"
    )
    jetstream = client.jetstream(timeout=5)
    subject = usage_subject("r1", "g1")
    await jetstream.publish(subject, batch.SerializeToString())
    taken_back = usage_pb2.UsageRecorded(gateway_id="g1", voids=[void])
    await jetstream.publish(subject, taken_back.SerializeToString())
    charged = [one.request_id.hex() for one in (leased, credited, voided)]
    said = {
        "charged": charged,
        "voided": voided.request_id.hex(),
        "poison": poison.request_id.hex(),
    }
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Die at every point; the exit status is 0 when the last fork found nothing to die at."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    said = json.loads(sys.argv[1])
    settings = BusSettings()  # pyright: ignore[reportCallIssue]
    dsn = os.environ["BUSBAR_POSTGRES_DSN"]

    async def once(point: int) -> None:
        client = await connect(settings, "kill-points")
        await publish(client, said)
        await consume_until_killed(client, dsn, bytes.fromhex(said["warrant_key"]), point)
        await close(client)

    for point in range(POINTS_MAX):
        pid = os.fork()
        if pid == 0:
            asyncio.run(once(point))
            os._exit(DONE)
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) != -KILLED:
            return os.waitstatus_to_exitcode(status)
    return 1


if __name__ == "__main__":
    sys.exit(main())
