"""Money that billing lent to this gateway, tenant by tenant, and what requests take of it.

Pure: time comes in as seconds on any steady clock, amounts are nanos of the
tenant's currency. All amounts of a lease are totals since it was opened, as in
billing, so that asks and grants may be repeated, lost or out of order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

HORIZON_S = 60.0
"""A lease should last this long at the present rate: that is how long billing may be away."""
IDLE_S = 60.0
"""A lease from which nothing was taken for this long is given back: whoever asked since is served
while billing is away."""
HEARD_LATELY_S = 3.0
"""Billing is there, as far as one can tell, for so long after its last answer."""
REFUSAL_HOLDS_S = 0.5
"""How long a refusal of billing answers requests without asking again."""
RETRY_S = 0.25
"""How soon billing is asked again for somebody who waits."""
RENEW_PART = 3
"""A lease is renewed when this part of its life is over."""
SPARE_FACTOR = 2
"""What is beyond this many times the target goes back at the next renewal, or right after it where
only its answer shows that billing is there."""
ESTIMATES_AHEAD = 256
"""A lease should last for this many requests, before there is a rate to go by."""
_RATE_WEIGHT = 0.5
_ESTIMATE_FADES = 0.95


class Refused(Enum):
    """Why billing lends nothing more."""

    BALANCE = auto()
    BUDGET = auto()
    SUSPENDED = auto()
    UNKNOWN = auto()


_SCARCE = (Refused.BALANCE, Refused.BUDGET)
"""Other gateways may hold some of it, and give it back."""


@dataclass(slots=True, eq=False)
class Lease:
    """What this gateway may spend of one tenant's money."""

    lease_id: bytes
    free_nanos: int = 0
    """What nobody has a claim on: granted, and not returned, spent or reserved."""
    granted_nanos: int = 0
    returned_nanos: int = 0
    spent_nanos: int = 0
    reserved_nanos: int = 0
    posted_nanos: int = 0
    """What billing has charged of it, when it last said so."""
    fresh_until: float = 0.0
    """Later billing may have taken it back, unless it is known to be away."""
    renew_at: float = 0.0
    spare_held: bool = False
    """Whether a renewal gave nothing back because billing had not been heard lately."""
    closed: bool = False
    """Billing has taken it back: nothing may be spent from it any more."""

    def grant(self, granted_nanos: int) -> None:
        """Billing has lent so much in all, or more."""
        more = granted_nanos - self.granted_nanos
        if more > 0:
            self.granted_nanos = granted_nanos
            self.free_nanos += more

    def give_back(self, nanos: int) -> None:
        """Billing has this again of what nobody has a claim on."""
        self.returned_nanos += nanos
        self.free_nanos -= nanos

    @property
    def unposted_nanos(self) -> int:
        """Spent and not charged: not posted yet, taken back, or cheaper than it can be at most."""
        return max(0, self.spent_nanos - self.posted_nanos)


@dataclass(slots=True, eq=False)
class Reservation:
    """One request's claim."""

    tenant_id: str
    lease: Lease
    nanos: int
    """Claimed and not spent; 0 once it is settled or released."""
    spent_nanos: int = 0


@dataclass(slots=True, eq=False)
class Wallet:
    """One tenant at this gateway."""

    tenant_id: str
    currency: str = "USD"
    lease: Lease | None = None
    leaving: Lease | None = None
    """Given back, but billing has not confirmed it: until then it would lend this one again,
    and nothing would know any more what was spent from it."""
    used_at: float = 0.0
    target_nanos: int = 0
    """What should be free, by the rate of spending."""
    estimate_nanos: int = 0
    """Largest recent claim."""
    refused: Refused | None = None
    refused_at: float = field(default=float("-inf"))
    elsewhere_nanos: int = 0
    """Not in our lease: in other leases or too little to be lent when billing refused, and what we
    gave back since."""
    retry_unix_ms: int = 0
    recalled: bool = False
    refused_below_nanos: int = 0
    """Requests were refused because the balance, wherever it is held, was less than this, and
    billing has not heard of it yet; 0: none."""
    asked_at: float = field(default=float("-inf"))
    _rate: float = 0.0
    _measured_at: float = 0.0
    _spent_since: int = 0

    def reserve(
        self, nanos: int, now: float, *, billing_away: bool, likely_nanos: int = 0
    ) -> Reservation | None:
        """Claim an amount, and up to `likely_nanos` of what is free beside it; None when it is not
        there, or the lease may be gone."""
        lease = self.lease
        if lease is None or lease.free_nanos < nanos:
            return None
        if now >= lease.fresh_until and not billing_away:
            return None
        if likely_nanos > nanos:
            nanos = min(likely_nanos, lease.free_nanos)
        lease.free_nanos -= nanos
        lease.reserved_nanos += nanos
        self.used_at = now
        self.estimate_nanos = max(self.estimate_nanos, nanos)
        return Reservation(self.tenant_id, lease, nanos)

    def extend(self, reservation: Reservation, nanos: int) -> bool:
        """Raise a claim to `nanos`; False when that is not there."""
        lease, more = reservation.lease, nanos - reservation.nanos
        if more <= 0 and not lease.closed:
            return True
        if lease.closed:
            return self._move(reservation, nanos)
        if lease.free_nanos < more:
            return False
        lease.free_nanos -= more
        lease.reserved_nanos += more
        reservation.nanos = nanos
        return True

    def _move(self, reservation: Reservation, nanos: int) -> bool:
        """Claim from the lease that took the place of a closed one."""
        if self.lease is None or self.lease.free_nanos < nanos:
            return False
        self.release(reservation)
        self.lease.free_nanos -= nanos
        self.lease.reserved_nanos += nanos
        reservation.lease, reservation.nanos = self.lease, nanos
        return True

    def spend(self, reservation: Reservation, nanos: int) -> None:
        """What was claimed is now spent; the rest is free, and what lacks is overdrawn."""
        lease, claimed = reservation.lease, reservation.nanos
        lease.reserved_nanos -= claimed
        lease.spent_nanos += nanos
        lease.free_nanos += claimed - nanos
        reservation.nanos, reservation.spent_nanos = 0, nanos
        self._spent_since += nanos

    def give_back(self, lease: Lease, nanos: int) -> None:
        """Billing has this again of a lease, and may lend it again."""
        lease.give_back(nanos)
        self.elsewhere_nanos += nanos

    @property
    def unposted_nanos(self) -> int:
        """As in Lease; of one that is leaving, too: it comes back when all of it is posted."""
        leases = (self.lease, self.leaving)
        return sum(one.unposted_nanos for one in leases if one is not None)

    def take_back(self, reservation: Reservation) -> None:
        """What was spent is not charged after all.

        It is free again when the lease is closed: billing may see what is spent next before it
        sees this charge taken back.
        """
        self._spent_since -= reservation.spent_nanos
        reservation.spent_nanos = 0

    @staticmethod
    def release(reservation: Reservation) -> None:
        """The claim is given up."""
        lease, claimed = reservation.lease, reservation.nanos
        lease.reserved_nanos -= claimed
        lease.free_nanos += claimed
        reservation.nanos = 0

    def is_low(self) -> bool:
        """Whether it is time to ask for more."""
        lease = self.lease
        return lease is not None and lease.free_nanos < self.target_nanos // 2

    def measure(self, now: float) -> None:
        """Learn the rate of spending; call it every second or so."""
        passed_s = now - self._measured_at
        if passed_s <= 0:
            return
        rate = max(0, self._spent_since) / passed_s
        first = self._measured_at == 0.0 or rate > self._rate
        self._rate = rate if first else self._rate + _RATE_WEIGHT * (rate - self._rate)
        self._measured_at, self._spent_since = now, 0
        self.target_nanos = max(
            round(self._rate * HORIZON_S), ESTIMATES_AHEAD * self.estimate_nanos
        )
        self.estimate_nanos = round(_ESTIMATE_FADES * self.estimate_nanos)


@dataclass(frozen=True, slots=True)
class Ask:
    """What to tell billing of one tenant."""

    tenant_id: str
    lease_id: bytes = b""
    want_nanos: int = 0
    need_nanos: int = 0
    spent_nanos: int = 0
    reserved_nanos: int = 0
    returned_nanos: int = 0
    closing: bool = False
    refused_below_nanos: int = 0
    """As in Wallet."""


@dataclass(frozen=True, slots=True)
class Granted:
    """What billing says of one tenant."""

    tenant_id: str
    lease_id: bytes = b""
    granted_nanos: int = 0
    posted_nanos: int = 0
    currency: str = ""
    ttl_s: float = 0.0
    closed: bool = False
    """The lease that was named is no more."""
    refused: Refused | None = None
    elsewhere_nanos: int = 0
    retry_unix_ms: int = 0


def plan_ask(wallet: Wallet, wanted: list[int], now: float, heard_at: float) -> Ask | None:
    """What to ask for a tenant now; `wanted` is what each request that waits lacks, in turn.

    Gives back what is not needed; None when there is nothing to say. Billing last answered
    anything at `heard_at`: what it did not hear to be given back nobody could spend any more.
    """
    lease = wallet.lease
    if wallet.leaving is not None:
        return _ask(wallet, wallet.leaving, closing=True)
    if wanted:
        return _for_those_who_wait(wallet, wanted, now)
    wallet.estimate_nanos = wallet.estimate_nanos if lease is not None else 0
    ask = _renewal(wallet, lease, now, heard_at) if lease is not None else None
    if ask is None and wallet.refused_below_nanos and now - wallet.asked_at >= RETRY_S:
        return _ask(wallet, lease)
    return ask


def _renewal(wallet: Wallet, lease: Lease, now: float, heard_at: float) -> Ask | None:
    there = now - heard_at <= HEARD_LATELY_S
    if there and not lease.reserved_nanos and now - wallet.used_at > IDLE_S:
        return _close(wallet, lease)
    due = now >= lease.renew_at
    if wallet.recalled:
        wallet.give_back(lease, max(0, lease.free_nanos))
        wallet.recalled = False
        return _ask(wallet, lease)
    spare = lease.free_nanos > SPARE_FACTOR * wallet.target_nanos
    if spare and there and (due or lease.spare_held):
        wallet.give_back(lease, lease.free_nanos - wallet.target_nanos)
        lease.spare_held = False
        return _ask(wallet, lease)
    lease.spare_held |= due and not there
    asked_lately = now - wallet.asked_at < RETRY_S or now - wallet.refused_at <= REFUSAL_HOLDS_S
    asks_for_more = wallet.is_low() and not asked_lately
    if not due and not asks_for_more:
        return None
    want = max(0, wallet.target_nanos - lease.free_nanos)
    return _ask(wallet, lease, want_nanos=want)


def _for_those_who_wait(wallet: Wallet, wanted: list[int], now: float) -> Ask | None:
    if now - wallet.asked_at < RETRY_S and now - wallet.refused_at < REFUSAL_HOLDS_S:
        return None
    lease = wallet.lease
    if lease is not None and _worth_closing(wallet, lease, wanted[0]):
        return _close(wallet, lease)
    free = lease.free_nanos if lease is not None else 0
    need = max(0, wanted[0] - max(0, free))
    ahead = max(wallet.target_nanos, ESTIMATES_AHEAD * max(wanted))
    want = max(need, sum(wanted) + ahead - max(0, free))
    return _ask(wallet, lease, want_nanos=want, need_nanos=need)


def _worth_closing(wallet: Wallet, lease: Lease, lacking_nanos: int) -> bool:
    """Whether what nobody can spend of a lease would help who waits: it comes back with the rest
    when the lease is closed and all of it is posted."""
    if wallet.refused not in _SCARCE or lease.reserved_nanos or not lease.unposted_nanos:
        return False
    coming = lease.free_nanos + lease.unposted_nanos + wallet.elsewhere_nanos
    return coming >= lacking_nanos


def close_lease(wallet: Wallet) -> Ask | None:
    """What to say when the gateway is done with a tenant."""
    if wallet.lease is not None:
        return _close(wallet, wallet.lease)
    return _ask(wallet, wallet.leaving, closing=True) if wallet.leaving is not None else None


def _close(wallet: Wallet, lease: Lease) -> Ask:
    wallet.give_back(lease, max(0, lease.free_nanos))
    wallet.lease, wallet.leaving = None, lease
    return _ask(wallet, lease, closing=True)


def _ask(
    wallet: Wallet,
    lease: Lease | None,
    *,
    want_nanos: int = 0,
    need_nanos: int = 0,
    closing: bool = False,
) -> Ask:
    if lease is None:
        return Ask(
            wallet.tenant_id,
            want_nanos=want_nanos,
            need_nanos=need_nanos,
            refused_below_nanos=wallet.refused_below_nanos,
        )
    return Ask(
        wallet.tenant_id,
        lease.lease_id,
        want_nanos,
        need_nanos,
        lease.spent_nanos,
        lease.reserved_nanos,
        lease.returned_nanos,
        closing,
        wallet.refused_below_nanos,
    )


def apply_grant(wallet: Wallet, ask: Ask, grant: Granted, asked_at: float, now: float) -> None:
    """Take what billing said to `ask`, which was sent at `asked_at`."""
    wallet.asked_at = asked_at
    if ask.refused_below_nanos >= wallet.refused_below_nanos:
        wallet.refused_below_nanos = 0
    if ask.closing:
        if wallet.leaving is not None:
            wallet.elsewhere_nanos += wallet.leaving.unposted_nanos
        wallet.leaving = None
        return
    if grant.closed:
        _lose(wallet, ask.lease_id)
        return
    wallet.refused, wallet.elsewhere_nanos = grant.refused, grant.elsewhere_nanos
    wallet.retry_unix_ms = grant.retry_unix_ms
    wallet.refused_at = now if grant.refused else float("-inf")
    if not grant.lease_id:
        return
    wallet.currency = grant.currency or wallet.currency
    lease = wallet.lease
    if lease is None:
        lease = wallet.lease = Lease(grant.lease_id)
        wallet.used_at = now
    if lease.lease_id != grant.lease_id:
        return
    lease.grant(grant.granted_nanos)
    lease.posted_nanos = grant.posted_nanos
    lease.fresh_until = max(lease.fresh_until, asked_at + grant.ttl_s)
    lease.renew_at = asked_at + grant.ttl_s / RENEW_PART


def _lose(wallet: Wallet, lease_id: bytes) -> None:
    if wallet.lease is not None and wallet.lease.lease_id == lease_id:
        wallet.lease.closed = True
        wallet.lease = None
    wallet.refused, wallet.refused_at = None, float("-inf")


class Verdict(Enum):
    """What becomes of a request for which the money is not there."""

    WAIT = auto()
    REFUSE = auto()
    AWAY = auto()
    """Billing cannot be asked, and what it lent is spent."""


def judge(
    wallet: Wallet, lacking_nanos: int, now: float, *, billing_away: bool, stuck_nanos: int = 0
) -> Verdict:
    """Whether it is worth waiting for `lacking_nanos`: requests in flight claim more than they
    spend, the ledger may charge less than was spent, and other gateways give back what they do
    not use. `stuck_nanos` is claimed by those who wait themselves."""
    ours = _ours_nanos(wallet) - stuck_nanos
    if ours >= lacking_nanos and (billing_away or wallet.refused is not Refused.SUSPENDED):
        return Verdict.WAIT
    if billing_away:
        return Verdict.AWAY
    if wallet.refused is None or now - wallet.refused_at > REFUSAL_HOLDS_S:
        return Verdict.WAIT
    coming = left_nanos(wallet) - stuck_nanos
    if wallet.refused in _SCARCE and coming >= lacking_nanos:
        return Verdict.WAIT
    return Verdict.REFUSE


def left_nanos(wallet: Wallet) -> int:
    """What is not known to be spent of the balance, or of a budget that is scarcer: here, in
    flight, at other gateways and in no lease."""
    return here_nanos(wallet) + wallet.elsewhere_nanos


def here_nanos(wallet: Wallet) -> int:
    """What of that is at this gateway."""
    return _ours_nanos(wallet) + wallet.unposted_nanos


def _ours_nanos(wallet: Wallet) -> int:
    lease = wallet.lease
    return lease.free_nanos + lease.reserved_nanos if lease is not None else 0
