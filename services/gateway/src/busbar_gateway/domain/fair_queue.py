"""Weighted Virtual Token Counters: who of several backlogged flows is served next.

Sheng et al., "Fairness in Serving Large Language Models", OSDI'24. Every flow has
a counter of the service it got, divided by its weight. The waiting flow with the
smallest counter is served next and charged at once with the predicted cost, which
is corrected as the real one shows. A flow that returns is lifted to the smallest
counter of those that wait (to that of the last one served when none waits), so
that idleness earns no credit. A flow of which something is in service is not idle: it
may stay behind the largest counter by one request of its own, or a tenant with few
clients would lose a turn whenever none of them happens to wait.

With L the largest charge at the start, K the largest later correction of one
request and C the requests in flight, the counters of two waiting flows are never
further apart than U = (L + C*K) / (smallest weight), so what two flows that wait
throughout an interval are charged in it, each divided by its weight, differs by at
most 2U; with exact predictions that is twice the largest request.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")

IDLE_FLOWS_MAX = 10_000


@dataclass(slots=True, eq=False)
class Flow(Generic[ItemT]):
    """One tenant: what it was charged, and what of it waits."""

    key: str
    weight: float
    counter: float = 0.0
    waiting: deque[ItemT] = field(default_factory=deque[ItemT])
    open: int = 0
    """Charges that may still be corrected."""
    position: float = -math.inf
    """The counter with which it stands in the order, lower than any when nothing of it waits; may
    lag behind a counter that grew."""
    typical: float = 0.0
    """Prediction of what a request costs beyond what is known when it starts."""
    started_for: float = 0.0
    """What its last request was charged at its start, divided by its weight."""


class FairQueue(Generic[ItemT]):
    """The flows of one band.

    Starting, charging and queueing look at O(log flows) of them. The order is a sorted list: to
    insert into one of a thousand moves less memory than a heap compares.
    """

    def __init__(self) -> None:
        self._flows: dict[str, Flow[ItemT]] = {}
        self._order: list[Flow[ItemT]] = []
        """Those that wait, by position; of equals who came first."""
        self._positions: list[float] = []
        """Of the flows in that order."""
        self._last: Flow[ItemT] | None = None
        self._top = 0.0
        """No counter is larger."""
        self._active: dict[str, Flow[ItemT]] = {}
        self._forget_beyond = IDLE_FLOWS_MAX
        self.waiting = 0
        self.waiting_weight = 0.0
        """Sum of the weights of the flows that wait."""

    def flow(self, key: str, weight: float) -> Flow[ItemT]:
        """The flow of that name, made if it is new, with that weight from now on."""
        found = self._flows.get(key)
        if found is None:
            if len(self._flows) >= self._forget_beyond:
                self._forget_idle()
            found = self._flows[key] = Flow(key, weight)
        elif found.weight != weight:
            if found.waiting:
                self.waiting_weight += weight - found.weight
            found.weight = weight
        return found

    @property
    def known(self) -> int:
        """How many flows are remembered, idle ones among them."""
        return len(self._flows)

    def flows_waiting(self) -> Iterator[Flow[ItemT]]:
        """The flows of which something waits."""
        return iter(self._active.values())

    def lift(self, flow: Flow[ItemT]) -> None:
        """Make up for its idleness; before it is served without having waited."""
        lowest = self.next_flow() if self._active else self._last
        if lowest is None:
            return
        least = lowest.counter
        if flow.open:  # so that no two that wait come further apart than one request
            least = min(least, self._top - flow.started_for)
        flow.counter = max(flow.counter, least)

    def push(self, flow: Flow[ItemT], item: ItemT) -> None:
        """Queue behind the flow's own."""
        if not flow.waiting:
            self.lift(flow)
            self._active[flow.key] = flow
            self.waiting_weight += flow.weight
            self._place(flow)
        flow.waiting.append(item)
        self.waiting += 1

    def next_flow(self) -> Flow[ItemT] | None:
        """The flow whose turn it is; None when none waits."""
        while self._order:
            flow = self._order[0]
            if flow.position >= flow.counter:
                return flow
            del self._order[0], self._positions[0]
            self._place(flow)
        return None

    def pop(self, flow: Flow[ItemT]) -> ItemT:
        """Take the flow's oldest item; charge it with `serve`."""
        waiting = flow.waiting
        item = waiting.popleft()
        self.waiting -= 1
        if not waiting:
            self._leave(flow)
        return item

    def serve(self, flow: Flow[ItemT], cost: float) -> None:
        """Charge an item that starts now: one that was popped, or of a flow that was lifted."""
        flow.started_for = started_for = cost / flow.weight
        flow.counter = counter = flow.counter + started_for
        flow.open += 1
        self._last = flow
        self._top = max(self._top, counter)

    def correct(self, flow: Flow[ItemT], difference: float) -> None:
        """Add to an open charge what was found to be missing, or take back."""
        flow.counter = counter = flow.counter + difference / flow.weight
        if counter > self._top:
            self._top = counter
        elif counter < flow.position:  # which is of none that does not wait
            self._displace(flow)
            self._place(flow)

    def settle(self, flow: Flow[ItemT], difference: float) -> None:
        """Correct an open charge for the last time."""
        flow.open -= 1
        if difference:
            self.correct(flow, difference)

    def remove(self, flow: Flow[ItemT], item: ItemT) -> bool:
        """Take an item out from anywhere; False when it does not wait."""
        if item not in flow.waiting:
            return False
        flow.waiting.remove(item)
        self._taken(flow)
        return True

    def pop_newest(self, flow: Flow[ItemT]) -> ItemT:
        """Take the flow's newest item."""
        item = flow.waiting.pop()
        self._taken(flow)
        return item

    def _place(self, flow: Flow[ItemT]) -> None:
        flow.position = position = flow.counter
        index = bisect_right(self._positions, position)
        self._positions.insert(index, position)
        self._order.insert(index, flow)

    def _displace(self, flow: Flow[ItemT]) -> None:
        index = 0
        if self._order[0] is not flow:
            index = self._order.index(flow, bisect_left(self._positions, flow.position))
        del self._order[index], self._positions[index]

    def _taken(self, flow: Flow[ItemT]) -> None:
        self.waiting -= 1
        if not flow.waiting:
            self._leave(flow)

    def _leave(self, flow: Flow[ItemT]) -> None:
        """Nothing of it waits any more."""
        self._displace(flow)
        del self._active[flow.key]
        self.waiting_weight -= flow.weight
        flow.position = -math.inf

    def _forget_idle(self) -> None:
        """Drop the flows that are doing nothing; they would be lifted on their return anyway."""
        self._flows = {k: flow for k, flow in self._flows.items() if flow.waiting or flow.open}
        self._forget_beyond = 2 * len(self._flows) + IDLE_FLOWS_MAX
