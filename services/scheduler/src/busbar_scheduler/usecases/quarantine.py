"""Keeping broken nodes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from busbar_errors import Conflict

from busbar_scheduler.domain.quarantine import Suspicions, Vitals, room_for_one_more, sentence
from busbar_scheduler.usecases.ports import Leadership, Sites
from busbar_scheduler.usecases.tell_place import tell

log = structlog.get_logger()


class Patients(Protocol):
    """How the nodes are."""

    def vitals(self) -> Mapping[str, Vitals] | None:
        """By "region.site.node"; None while the picture is not current."""
        ...


@dataclass(frozen=True, slots=True)
class Warden:
    """Looks at every node once a second, and tells those that are broken to stay out."""

    patients: Patients
    sites: Sites
    leadership: Leadership
    suspicions: Suspicions = field(default_factory=Suspicions)

    async def look(self, now_s: float, now_unix_ms: int) -> None:
        """One round; raises Unavailable when the bus does not answer."""
        fleet = self.patients.vitals()
        if fleet is None:
            return
        broken = self.suspicions.look(fleet, now_s)
        if self.leadership.token() is None:
            return
        for key, reason in broken.items():
            site, _, node = key.rpartition(".")
            at_site = sum(one.startswith(f"{site}.") for one in fleet)
            described = self.sites.described(site)
            told = sentence(described, node, reason, now_unix_ms)
            if told is None or not room_for_one_more(described, at_site, now_unix_ms):
                continue
            try:
                await tell(self.sites, site, node, told)
            except Conflict as conflict:
                log.info("lost a race", reason=conflict.reason)
                continue
            self.suspicions.forgive(key)
            log.warning(
                "node quarantined", node=key, reason=reason, for_s=round(told.grace_ms / 1000)
            )
