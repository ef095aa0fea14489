"""The WORK streams: what is published waits for whoever pulls first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from busbar_messaging.topology import work_consumer

from simulation.fleet.agenda import Agenda
from simulation.fleet.work import Work


class Puller(Protocol):
    """A replica that asks for work."""

    pulls: int
    """Number of its subscription: what an earlier one asked for is void."""

    def take(self, work: Work) -> bool:
        """Take what was asked for; False when it does not arrive."""
        ...


_CONSUMER = work_consumer("any", "any")
"""Its bounds are the same for all."""


@dataclass(slots=True)
class _Queue:
    waiting: deque[Work] = field(default_factory=deque[Work])
    asked: deque[tuple[Puller, int]] = field(default_factory=deque[tuple[Puller, int]])


class Streams:
    """The queues of all deployments in all regions."""

    def __init__(self, agenda: Agenda, waited: Callable[[Work, float], None]) -> None:
        self._agenda = agenda
        self._waited = waited
        self._queues: dict[tuple[str, str], _Queue] = {}
        self._published: dict[Work, float] = {}
        self.stuck = 0
        """What was delivered in vain as often as it may be: nobody gets it any more."""

    def publish(self, region: str, work: Work) -> None:
        """Whoever asked first gets it; else it waits."""
        queue = self._queue(region, work.request.deployment)
        self._published[work] = self._agenda.now
        self._offer(queue, work)

    def pull(self, region: str, deployment: str, puller: Puller) -> None:
        """Ask for one."""
        queue = self._queue(region, deployment)
        queue.asked.append((puller, puller.pulls))
        while queue.waiting and queue.asked:
            self._offer(queue, queue.waiting.popleft())

    def waiting(self) -> int:
        """What nobody has taken yet."""
        return sum(len(queue.waiting) for queue in self._queues.values())

    def _offer(self, queue: _Queue, work: Work) -> None:
        while queue.asked:
            puller, number = queue.asked.popleft()
            if puller.pulls == number:
                self._deliver(queue, puller, work)
                return
        queue.waiting.append(work)

    def _deliver(self, queue: _Queue, puller: Puller, work: Work) -> None:
        work.deliveries += 1
        if puller.take(work):
            self._waited(work, self._agenda.now - self._published.pop(work))
            return
        if work.deliveries < _CONSUMER.max_deliver:
            self._agenda.after(_CONSUMER.ack_wait.total_seconds(), self._offer, queue, work)
        else:
            self.stuck += 1

    def _queue(self, region: str, deployment: str) -> _Queue:
        return self._queues.setdefault((region, deployment), _Queue())
