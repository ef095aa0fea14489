"""Which region a request is sent to, and which regions take nothing although they should."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from busbar_gateway.domain.attempts import UNTAKEN_S
from busbar_gateway.domain.routes import Target

AVOIDED_FIRST_S, AVOIDED_LONGEST_S = 3.0, 24.0
"""So long is a region avoided that did not take what was sent there; twice as long each time
that it happens again soon after."""


def choose_region(
    targets: Sequence[Target],
    own_region: str,
    in_flight: Mapping[str, int],
    *,
    shares: Mapping[str, float] | None = None,
    nearest: Sequence[str] = (),
    avoided: Collection[str] = (),
) -> str | None:
    """Return where the next request goes; None when nothing is ready.

    To the own region while it has a free slot, then to the `nearest` ones in
    their order, then to the one with most free slots. Where none is free, to
    the one with the least too many. A region that is `avoided` comes after all
    that are not. `in_flight` counts what this gateway has out, by region, and
    `shares` says which part of the slots of each it may fill; all by default.
    """
    best, best_merit = None, (False, False, 0, 0.0)
    for target in targets:
        region = target.region
        if target.ready_slots <= 0:
            continue
        free = free_slots(target, in_flight, shares or {})
        nearness = _nearness(region, own_region, nearest) if free > 0 else 0
        merit = (region not in avoided, free > 0, nearness, free)
        if best is None or merit > best_merit:
            best, best_merit = region, merit
    return best


def free_slots(target: Target, in_flight: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """How many more this gateway may send there; less than 0 where it has sent too many."""
    return target.ready_slots * shares.get(target.region, 1.0) - in_flight.get(target.region, 0)


def _nearness(region: str, own_region: str, nearest: Sequence[str]) -> int:
    if region == own_region:
        return len(nearest) + 1
    return len(nearest) - nearest.index(region) if region in nearest else 0


@dataclass(slots=True)
class _Avoided:
    until: float
    for_s: float


@dataclass(slots=True)
class Outstanding:
    """What this gateway has out, by queue and region. Times are seconds of one clock."""

    own_region: str
    nearest: Sequence[str] = ()
    """Other regions, the nearest first; those that are not named are all equally far."""
    _in_flight: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    _avoided: dict[tuple[str, str], _Avoided] = field(
        default_factory=dict[tuple[str, str], _Avoided]
    )
    _heard: dict[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])

    def sent(self, track: str, region: str) -> None:
        """One more is out there."""
        self._in_flight.setdefault(track, Counter())[region] += 1

    def back(self, track: str, region: str) -> None:
        """One that was out there is not any more."""
        counts = self._in_flight[track]
        counts[region] -= 1
        if not counts[region]:
            del counts[region]
        if not counts:
            del self._in_flight[track]

    def heard(self, track: str, region: str, now: float) -> None:
        """A node of the region works for this queue: it takes what it has slots for."""
        self._heard[track, region] = now
        if self._avoided:
            self._avoided.pop((track, region), None)

    def not_taken(self, track: str, region: str, now: float) -> None:
        """The region let work wait although its nodes should have slots: try others first.

        Not where one of them has just been heard: those are busy with what others have sent.
        """
        if now - self._heard.get((track, region), -UNTAKEN_S) < UNTAKEN_S:
            return
        self.not_reached(track, region, now)

    def not_reached(self, track: str, region: str, now: float) -> None:
        """The region's stream took nothing, or cannot be seen: try others first."""
        before = self._avoided.get((track, region))
        if before is not None and now < before.until:
            return
        again = before is not None and now - before.until < before.for_s
        for_s = min(2 * before.for_s, AVOIDED_LONGEST_S) if before and again else AVOIDED_FIRST_S
        self._avoided[track, region] = _Avoided(now + for_s, for_s)

    def forget_what_is_over(self, now: float) -> None:
        """Drop what decides nothing any more: queues come and go."""
        self._heard = {one: at for one, at in self._heard.items() if now - at < UNTAKEN_S}
        self._avoided = {
            one: avoided
            for one, avoided in self._avoided.items()
            if now - avoided.until < avoided.for_s
        }

    @property
    def remembered_count(self) -> int:
        """Of how many queues in a region something is known that decides."""
        return len(self._heard.keys() | self._avoided.keys())

    def choose(
        self,
        track: str,
        targets: Sequence[Target],
        shares: Mapping[str, float],
        now: float,
        *,
        avoiding: str = "",
    ) -> str | None:
        """Return where the next one goes, as `choose_region`.

        Not where one fell silent, `avoiding`, if a slot is free elsewhere.
        """
        if len(targets) == 1:
            return targets[0].region if targets[0].ready_slots > 0 else None
        if avoiding and (other := self.elsewhere(track, targets, shares, avoiding, now)):
            return other
        return choose_region(
            targets,
            self.own_region,
            self._in_flight.get(track) or {},
            shares=shares,
            nearest=self.nearest,
            avoided=self._avoided_now(track, targets, now),
        )

    def elsewhere(
        self,
        track: str,
        targets: Sequence[Target],
        shares: Mapping[str, float],
        region: str,
        now: float,
    ) -> str | None:
        """Return where work could go that nobody takes in `region`; None when it has to wait there.

        Where a slot is free, or anywhere that is ready when the region is not any more.
        """
        avoided = self._avoided_now(track, targets, now)
        in_flight = self._in_flight.get(track) or {}
        ready = any(target.region == region and target.ready_slots > 0 for target in targets)
        others = [
            target
            for target in targets
            if target.region not in {region, *avoided}
            and (not ready or free_slots(target, in_flight, shares) > 0)
        ]
        return choose_region(
            others, self.own_region, in_flight, shares=shares, nearest=self.nearest
        )

    def _avoided_now(self, track: str, targets: Sequence[Target], now: float) -> set[str]:
        if not self._avoided:
            return set()
        return {
            target.region
            for target in targets
            if (one := self._avoided.get((track, target.region))) and now < one.until
        }
