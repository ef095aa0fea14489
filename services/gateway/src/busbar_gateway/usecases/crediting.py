"""Money for requests: claimed before they are queued, spent when they are charged.

A claim is made in memory; only when the tenant's lease lacks it a request waits,
together with its tenant's others, until billing has answered.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic, time_ns
from typing import Protocol

import structlog
from busbar_messaging.background import rest_s

from busbar_gateway.domain.credit import (
    RETRY_S,
    Ask,
    Granted,
    Refused,
    Reservation,
    Verdict,
    Wallet,
    apply_grant,
    close_lease,
    judge,
    left_nanos,
    plan_ask,
)
from busbar_gateway.domain.estimates import WorkHistory, least_nanos, likely_nanos, most_nanos
from busbar_gateway.domain.failures import InsufficientQuota, RateLimited, Unavailable
from busbar_gateway.domain.prices import PriceList, Rates
from busbar_gateway.domain.shortfalls import why_nothing_came, why_refused
from busbar_gateway.usecases.calls import InferenceCall
from busbar_gateway.usecases.charging import Delivered

log = structlog.get_logger()

WAIT_MAX_S = 5.0
"""How long a request waits for money that is there but claimed by others."""
ASKS_MAX = 256
"""Tenants in one call of billing."""
MEASURE_EVERY_S = 1.0
_EARLY_S = 0.05
"""By how much a measurement may come before its time."""
HISTORIES_MAX = 50_000
_RETRY_AFTER_AWAY_S = 2.0
_RETRY_AFTER_CLAIMED_S = 1.0


class Lender(Protocol):
    """Who lends: billing."""

    async def ask(self, asks: Sequence[Ask]) -> Sequence[Granted] | None:
        """One answer for each ask; None when billing cannot be reached."""
        ...


@dataclass(slots=True, eq=False)
class _Waiter:
    nanos: int
    """What it must have in all."""
    likely: int
    """What it takes of what is there; more than `nanos` once it has settled for less."""
    least: int
    """What it settles for when what is left of the balance is less than likely."""
    unraised: int
    """What it would settle for if nothing had been worked in vain."""
    reservation: Reservation | None = None
    """What it has already, when it needs more."""
    done: asyncio.Future[Reservation] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Credit:
    """All tenants' money at this gateway. `run` must be running."""

    def __init__(
        self,
        lender: Lender,
        prices: Callable[[], PriceList],
        unix_ns: Callable[[], int] = time_ns,
    ) -> None:
        self._unix_ns = unix_ns
        self._lender = lender
        self._prices = prices
        self._wallets: dict[str, Wallet] = {}
        self._waiting: dict[str, deque[_Waiter]] = {}
        self._histories: dict[tuple[str, str], WorkHistory] = {}
        self._wake = asyncio.Event()
        self._pressing: set[str] = set()
        """Tenants of whom billing is to hear before the next look at all of them."""
        self._measured_at = 0.0
        self._turned_away: dict[str, int] = {}
        """Tenants whose requests were refused because billing is away, and what the last of each
        lacked: asked for until billing answers, so that their retries are served."""
        self.billing_away = False
        self._heard_at = float("-inf")
        """When billing last answered."""

    # --- of one request ---------------------------------------------------------------------

    def claim(self, call: InferenceCall) -> Reservation | None:
        """Claim a request's likely cost; None when it has to `wait` for it."""
        tenant_id = call.caller.tenant_id
        wallet = self._wallets.get(tenant_id)
        if wallet is None:
            wallet = self._wallets[tenant_id] = Wallet(tenant_id)
        if self._waiting and tenant_id in self._waiting:
            return None
        now = monotonic()
        likely = self._likely_nanos(call, wallet, now)
        reservation = wallet.reserve(likely, now, billing_away=self.billing_away)
        if wallet.is_low():
            self._press(tenant_id)
        return reservation

    async def wait(self, call: InferenceCall) -> Reservation:
        """Claim a request's likely cost as soon as the money is there.

        Raises InsufficientQuota, RateLimited while requests in flight claim what is left, or
        Unavailable while billing is away.
        """
        wallet = self._wallets.setdefault(call.caller.tenant_id, Wallet(call.caller.tenant_id))
        now = monotonic()
        likely, plain = self._likely_nanos(call, wallet, now), self._least_nanos(call, wallet)
        least = min(likely, max(plain, self._raised_nanos(call, wallet, now)))
        return await self._wait(wallet, _Waiter(likely, likely, least, plain), call.deadline)

    async def cover(self, reservation: Reservation, call: InferenceCall, nanos: int) -> None:
        """Raise a claim to `nanos`; raises as `wait` does, and then the claim is as before."""
        wallet = self._wallets.setdefault(reservation.tenant_id, Wallet(reservation.tenant_id))
        if not wallet.extend(reservation, nanos):
            waiter = _Waiter(nanos, nanos, nanos, nanos, reservation)
            await self._wait(wallet, waiter, call.deadline)

    def worked_in_vain(self, call: InferenceCall, nanos: int) -> None:
        """A request was worked, came to `nanos`, and ends uncharged for lack of them: the next one
        is not let in with less."""
        history = self._history(call)
        most = self._most_nanos(call, self._wallets.get(call.caller.tenant_id), history)
        history.worked_in_vain(nanos, monotonic(), most)

    def covers(self, reservation: Reservation, nanos: int) -> bool:
        """Whether a claim is `nanos` or can be raised to it without asking."""
        if nanos <= reservation.nanos and not reservation.lease.closed:
            return True
        wallet = self._wallets.get(reservation.tenant_id)
        if wallet is None:
            return False
        # In slices, so that a stream does not come here with every token.
        slice_nanos = nanos + max(nanos - reservation.nanos, reservation.nanos // 2)
        return wallet.extend(reservation, slice_nanos) or wallet.extend(reservation, nanos)

    def spend(
        self, reservation: Reservation, call: InferenceCall, delivered: Delivered, nanos: int
    ) -> None:
        """The request is charged this much, for what was delivered."""
        history = self._history(call)
        if history.vain_nanos:
            history.paid(reservation.nanos, monotonic())
        self._wallet_of(reservation).spend(reservation, nanos)
        history.add(
            call.text_bytes or call.request_bytes or len(call.payload),
            delivered.input_tokens,
            delivered.output_tokens,
            delivered.response_bytes,
            delivered.compute_us,
        )
        self._freed(reservation.tenant_id)

    def take_back(self, reservation: Reservation) -> None:
        """The charge is not made after all."""
        self._wallet_of(reservation).take_back(reservation)
        self._freed(reservation.tenant_id)

    def release(self, reservation: Reservation) -> None:
        """The request costs nothing more. Idempotent."""
        if reservation.nanos:
            Wallet.release(reservation)
            self._freed(reservation.tenant_id)

    def cost_nanos(self, call: InferenceCall, delivered: Delivered, at_unix_ns: int) -> int:
        """The most that the ledger charges for what was delivered."""
        wallet = self._wallets.get(call.caller.tenant_id)
        return self._rates(call, wallet, at_unix_ns).cost_nanos(
            delivered.input_tokens,
            delivered.output_tokens,
            (call.request_bytes or len(call.payload)) + delivered.response_bytes,
            delivered.compute_us,
        )

    # --- of all of them ---------------------------------------------------------------------

    async def run(self) -> None:
        """Ask billing for what is wanted, renew and give back, for ever."""
        while True:
            try:
                short = self._waiting or self._turned_away
                async with asyncio.timeout(rest_s(RETRY_S if short else MEASURE_EVERY_S)):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            await self.tick()

    async def tick(self) -> None:
        """Ask once, and serve or refuse who waits."""
        now = asyncio.get_running_loop().time()
        tenants = [*self._pressing, *self._waiting, *self._turned_away]
        self._pressing.clear()
        if now - self._measured_at >= MEASURE_EVERY_S - _EARLY_S:
            self._measured_at = now
            tenants = list(self._wallets)
            for wallet in self._wallets.values():
                wallet.measure(now)
        asks = self._due_asks(tenants, now)
        for start in range(0, len(asks), ASKS_MAX):
            await self._ask(asks[start : start + ASKS_MAX])
            if self.billing_away:  # each further call may take as long to find that out again
                break
        for tenant_id in list(self._waiting):
            self._serve(tenant_id)

    def recall(self, tenant_ids: Sequence[str]) -> None:
        """Another gateway is short of these tenants' money: give back what is not used."""
        for tenant_id in tenant_ids:
            wallet = self._wallets.get(tenant_id)
            if wallet is not None and wallet.lease is not None:
                wallet.recalled = True
                self._press(tenant_id)

    async def close(self) -> None:
        """Give everything back; nothing may be claimed any more."""
        asks = [ask for wallet in self._wallets.values() if (ask := close_lease(wallet))]
        for start in range(0, len(asks), ASKS_MAX):
            if await self._lender.ask(asks[start : start + ASKS_MAX]) is None:
                break

    @property
    def held_nanos(self) -> int:
        """What is lent and not spent, over all tenants."""
        leases = [one.lease for one in self._wallets.values() if one.lease is not None]
        return sum(lease.free_nanos + lease.reserved_nanos for lease in leases)

    def _press(self, tenant_id: str) -> None:
        self._pressing.add(tenant_id)
        self._wake.set()

    def _due_asks(self, tenants: Iterable[str], now: float) -> list[Ask]:
        asks: list[Ask] = []
        for tenant_id in dict.fromkeys(tenants):
            wallet = self._wallets.get(tenant_id)
            if wallet is None:
                continue
            wanted = [_lacking(one) for one in self._waiting.get(tenant_id, ())]
            if not wanted and tenant_id in self._turned_away:
                wanted = [self._turned_away[tenant_id]]
            ask = plan_ask(wallet, wanted, now, self._heard_at)
            if ask is not None:
                asks.append(ask)
            kept = wallet.lease or wallet.leaving or wallet.refused_below_nanos or wanted
            if not kept:
                del self._wallets[tenant_id]
        return asks

    async def _ask(self, asks: Sequence[Ask]) -> None:
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        grants = await self._lender.ask(asks)
        self.billing_away = grants is None
        if grants is None:
            return
        self._heard_at = loop.time()
        for ask, grant in zip(asks, grants, strict=True):
            self._turned_away.pop(ask.tenant_id, None)
            wallet = self._wallets.get(ask.tenant_id)
            if wallet is not None:
                apply_grant(wallet, ask, grant, asked_at, loop.time())

    async def _wait(self, wallet: Wallet, waiter: _Waiter, deadline: float) -> Reservation:
        loop = asyncio.get_running_loop()
        waiting = self._waiting.setdefault(wallet.tenant_id, deque())
        if waiter.reservation is None:
            waiting.append(waiter)
        else:  # what has been worked for comes before what has not begun
            waiting.appendleft(waiter)
        self._serve(wallet.tenant_id)
        self._wake.set()
        timer = loop.call_at(min(deadline, loop.time() + WAIT_MAX_S), _give_up, waiter, wallet)
        try:
            return await waiter.done
        except asyncio.CancelledError:
            if waiter.done.done() and not waiter.done.cancelled() and not waiter.reservation:
                self.release(waiter.done.result())
            raise
        finally:
            timer.cancel()
            self._forget(wallet.tenant_id, waiter)

    def _forget(self, tenant_id: str, waiter: _Waiter) -> None:
        waiting = self._waiting.get(tenant_id)
        if waiting is None:
            return
        if waiter in waiting:
            waiting.remove(waiter)
        if not waiting:
            del self._waiting[tenant_id]

    def _freed(self, tenant_id: str) -> None:
        if tenant_id in self._waiting:
            self._serve(tenant_id)

    def _serve(self, tenant_id: str) -> None:
        """Give those who wait what there is, in turn; refuse those for whom it is in vain."""
        waiting, wallet = self._waiting.get(tenant_id), self._wallets.get(tenant_id)
        if waiting is None or wallet is None:
            return
        now = asyncio.get_running_loop().time()
        stuck = sum(_claimed(one, wallet) for one in waiting)
        while waiting:
            waiter = waiting[0]
            if not waiter.done.done():
                claimed = self._claim_for(wallet, waiter, now)
                if claimed is None and self._settles_for_less(wallet, waiter, now, stuck):
                    claimed = self._claim_for(wallet, waiter, now)
                if claimed is not None:
                    waiter.done.set_result(claimed)
                else:
                    failure = self._failure(wallet, waiter, now, stuck)
                    if failure is None:
                        return
                    stuck -= _claimed(waiter, wallet)  # free as soon as it has heard
                    waiter.done.set_exception(failure)
            waiting.popleft()

    def _claim_for(self, wallet: Wallet, waiter: _Waiter, now: float) -> Reservation | None:
        if waiter.reservation is None:
            return wallet.reserve(
                waiter.nanos, now, billing_away=self.billing_away, likely_nanos=waiter.likely
            )
        return waiter.reservation if wallet.extend(waiter.reservation, waiter.nanos) else None

    def _settles_for_less(self, wallet: Wallet, waiter: _Waiter, now: float, stuck: int) -> bool:
        """Whether what is likely will not come: then the least that it can cost is asked for."""
        if waiter.least >= waiter.nanos:
            return False
        away, lacking = self.billing_away, _lacking(waiter)
        verdict = judge(wallet, lacking, now, billing_away=away, stuck_nanos=stuck)
        if verdict is not Verdict.REFUSE:
            return False
        waiter.nanos = waiter.least
        return True

    def _failure(
        self, wallet: Wallet, waiter: _Waiter, now: float, stuck_nanos: int
    ) -> Exception | None:
        lacking, away = _lacking(waiter), self.billing_away
        verdict = judge(wallet, lacking, now, billing_away=away, stuck_nanos=stuck_nanos)
        if verdict is Verdict.WAIT:
            return None
        if verdict is Verdict.AWAY:
            if wallet.tenant_id in self._turned_away or len(self._turned_away) < ASKS_MAX:
                self._turned_away[wallet.tenant_id] = lacking
            return Unavailable(
                "this tenant's credit cannot be checked at the moment", _RETRY_AFTER_AWAY_S
            )
        if wallet.refused is Refused.BALANCE:
            wallet.refused_below_nanos = max(wallet.refused_below_nanos, lacking + stuck_nanos)
        coming = left_nanos(wallet) - stuck_nanos
        raised = waiter.unraised <= coming and waiter.unraised < waiter.least
        rest = coming + waiter.nanos - lacking
        said = why_refused(wallet, raised=raised, needed_nanos=waiter.nanos, rest_nanos=rest)
        return InsufficientQuota(said)

    def _likely_nanos(self, call: InferenceCall, wallet: Wallet, now: float) -> int:
        tenant_id, route = wallet.tenant_id, call.route
        manifest, request_bytes = route.manifest, call.request_bytes or len(call.payload)
        rates = self._prices().rates(
            tenant_id, wallet.currency, manifest.price_class, self._unix_ns()
        )
        past = self._histories.get((tenant_id, route.deployment))
        likely = likely_nanos(
            manifest,
            request_bytes,
            call.output_tokens_max,
            rates,
            past,
            text_bytes=call.text_bytes,
        )
        if past is not None and past.vain_nanos:
            return max(likely, self._raised_nanos(call, wallet, now))
        return likely

    def _raised_nanos(self, call: InferenceCall, wallet: Wallet, now: float) -> int:
        """What it must claim because work in vain came to that; never more than it can cost."""
        past = self._histories.get((wallet.tenant_id, call.route.deployment))
        if past is None or not past.vain_nanos:
            return 0
        return past.at_least(now, self._most_nanos(call, wallet, past))

    def _least_nanos(self, call: InferenceCall, wallet: Wallet) -> int:
        past = self._histories.get((wallet.tenant_id, call.route.deployment))
        rates = self._rates(call, wallet, self._unix_ns())
        request_bytes = call.request_bytes or len(call.payload)
        manifest, text_bytes = call.route.manifest, call.text_bytes
        return least_nanos(manifest, request_bytes, rates, past, text_bytes=text_bytes)

    def _most_nanos(
        self, call: InferenceCall, wallet: Wallet | None, past: WorkHistory
    ) -> int | None:
        rates = self._rates(call, wallet, self._unix_ns())
        request_bytes = call.request_bytes or len(call.payload)
        return most_nanos(
            call.route.manifest,
            request_bytes,
            call.output_tokens_max,
            rates,
            past,
            text_bytes=call.text_bytes,
        )

    def _rates(self, call: InferenceCall, wallet: Wallet | None, at_unix_ns: int) -> Rates:
        currency = wallet.currency if wallet is not None else "USD"
        price_class = call.route.manifest.price_class
        return self._prices().rates(call.caller.tenant_id, currency, price_class, at_unix_ns)

    def _history(self, call: InferenceCall) -> WorkHistory:
        key = (call.caller.tenant_id, call.route.deployment)
        found = self._histories.get(key)
        if found is None:
            if len(self._histories) >= HISTORIES_MAX:
                self._histories.clear()
            found = self._histories[key] = WorkHistory()
        return found

    def _wallet_of(self, reservation: Reservation) -> Wallet:
        return self._wallets.get(reservation.tenant_id) or Wallet(reservation.tenant_id)


def _lacking(waiter: _Waiter) -> int:
    """What a waiter needs beyond what it claims already."""
    held = waiter.reservation
    if held is None or held.lease.closed:
        return waiter.nanos
    return waiter.nanos - held.nanos


def _claimed(waiter: _Waiter, wallet: Wallet) -> int:
    """What a waiter keeps from the others while it waits for more."""
    held = waiter.reservation
    return held.nanos if held is not None and held.lease is wallet.lease else 0


def _give_up(waiter: _Waiter, wallet: Wallet) -> None:
    if not waiter.done.done():
        reason = why_nothing_came(wallet, _lacking(waiter))
        waiter.done.set_exception(RateLimited(reason, _RETRY_AFTER_CLAIMED_S))
