"""Many gateways, one billing, and between them a network that loses, repeats and delays.

What decides is production's: the gateways' wallets, billing's use cases and its
reclaimer. Time, the bus and the crashes are the simulation's.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol
from uuid import UUID

from busbar_billing.adapters.bus.credit_leases import ClosingLeases, Reclaimer
from busbar_billing.domain import leases as lending
from busbar_billing.domain.usage import Outcome, UsageRecord, UsageVoid
from busbar_billing.usecases.leases import Answered, Asker, LeaseStore, answer_asks
from busbar_billing.usecases.post_usage import UsageStore, post_usage
from busbar_gateway.domain import credit

TICK_S = 0.25
WAIT_MAX_S = 5.0
COST_MAX = 60
SENT_AGAIN_PROBABILITY = 0.2
_EPOCH_NS = 1_800_000_000 * 10**9


class Store(LeaseStore, UsageStore, ClosingLeases, Protocol):
    """Billing's database."""


@dataclass(frozen=True)
class Message:
    """One message of USAGE."""

    sequence: int
    records: tuple[UsageRecord, ...] = ()
    voids: tuple[UsageVoid, ...] = ()


@dataclass
class Stream:
    """USAGE and its one consumer, as far as billing and its reclaimer see them."""

    messages: list[Message] = field(default_factory=list[Message])
    acknowledged: set[int] = field(default_factory=set[int])
    delivered: int = 0
    is_connected: bool = True
    stats: dict[str, int] = field(default_factory=lambda: {"reconnects": 0})

    def publish(self, *records: UsageRecord, voids: tuple[UsageVoid, ...] = ()) -> None:
        self.messages.append(Message(len(self.messages) + 1, records, voids))

    def pending(self) -> list[Message]:
        return [one for one in self.messages if one.sequence not in self.acknowledged]

    def jetstream(self, timeout: float) -> Stream:
        del timeout
        return self

    async def stream_info(self, name: str) -> Any:
        del name
        return SimpleNamespace(state=SimpleNamespace(last_seq=len(self.messages)))

    async def consumer_info(self, name: str, durable: str) -> Any:
        del name, durable
        floor = 0
        while floor + 1 in self.acknowledged:
            floor += 1
        return SimpleNamespace(
            num_pending=len(self.messages) - self.delivered,
            num_ack_pending=self.delivered - len(self.acknowledged),
            delivered=SimpleNamespace(stream_seq=self.delivered),
            ack_floor=SimpleNamespace(stream_seq=floor),
        )


@dataclass(eq=False)
class Request:
    """One request: what it claims at first, what it is found to cost, what the ledger charges."""

    request_id: UUID
    tenant_id: str
    likely: int
    cost: int
    charged: int
    waits_until: float
    least: int = 1
    """What it settles for when the balance does not cover what is likely."""
    settled: bool = False
    claim: credit.Reservation | None = None


@dataclass(eq=False)
class Gateway:
    """One run of one gateway: everything in it is lost when it is killed, but its commit table."""

    gateway_id: str
    run_id: str
    wallets: dict[str, credit.Wallet] = field(default_factory=dict[str, credit.Wallet])
    waiting: list[Request] = field(default_factory=list[Request])
    served: list[Request] = field(default_factory=list[Request])
    billing_away: bool = False
    heard_at: float = float("-inf")

    def wallet(self, tenant_id: str) -> credit.Wallet:
        return self.wallets.setdefault(tenant_id, credit.Wallet(tenant_id))

    def claim(self, request: Request, now: float) -> bool:
        wallet = self.wallet(request.tenant_id)
        request.claim = wallet.reserve(
            _wanted(request), now, billing_away=self.billing_away, likely_nanos=request.likely
        )
        return request.claim is not None


class World:
    """All of it. Every choice comes from `draws`, so a seed is a whole history."""

    def __init__(
        self, draws: random.Random, store: Store, tenants: list[str], *, faults: bool = True
    ) -> None:
        self.draws = draws
        self.store = store
        self.tenants = tenants
        self.faults = faults
        self.now = 0.0
        self.stream = Stream()
        self.gateways: list[Gateway] = []
        self.dead_commits: dict[str, list[Request]] = {}
        self.late: list[tuple[Asker, list[lending.Ask]]] = []
        self.delivered: dict[UUID, Request] = {}
        self.runs = 0
        self.billing_up = True
        self.reclaimer = self._new_reclaimer()

    def now_ms(self) -> int:
        return _EPOCH_NS // 10**6 + int(self.now * 1000)

    def new_id(self) -> UUID:
        return UUID(int=self.draws.getrandbits(128), version=4)

    def _new_reclaimer(self) -> Reclaimer:
        bus: Any = self.stream
        return Reclaimer(bus, self.store, self.store, self.new_id, clock=lambda: self.now)

    def _chance(self) -> float:
        """Below 0.3 something may go wrong."""
        return self.draws.random() if self.faults else 1.0

    # --- gateways -------------------------------------------------------------------------------

    def start_gateway(self, gateway_id: str) -> None:
        """Start it (again): it takes back what it does not know to have delivered."""
        self.runs += 1
        self.gateways.append(Gateway(gateway_id, f"run-{self.runs:06}"))
        for request in self.dead_commits.pop(gateway_id, ()):
            self._publish_void(request)

    def kill_gateway(self, gateway: Gateway) -> None:
        """Its requests end in nothing; some had their records in the stream by then."""
        self.gateways.remove(gateway)
        caught = [one for one in gateway.served if self.draws.random() < 0.5]
        for request in caught:
            if self._pay(gateway, request) and self.draws.random() < 0.5:
                self._publish(request)
        self.dead_commits.setdefault(gateway.gateway_id, []).extend(caught)

    def send_request(
        self, gateway: Gateway, cost: int = 0, charged: int = 0, likely: int = 0, least: int = 1
    ) -> None:
        cheaper = self.draws.random() < 0.2
        cost = cost or self.draws.randint(1, COST_MAX)
        request = Request(
            self.new_id(),
            self.draws.choice(self.tenants),
            likely=likely or max(1, cost + self.draws.randint(-20, 20)),
            cost=cost,
            charged=charged or (self.draws.randint(0, cost) if cheaper else cost),
            waits_until=self.now + WAIT_MAX_S,
            least=least,
        )
        if gateway.claim(request, self.now):
            gateway.served.append(request)
        else:
            gateway.waiting.append(request)

    def finish_request(self, gateway: Gateway) -> None:
        request = gateway.served.pop(self.draws.randrange(len(gateway.served)))
        wallet = gateway.wallet(request.tenant_id)
        assert request.claim is not None
        if self._chance() < 0.1 or not self._pay(gateway, request):
            wallet.release(request.claim)  # it failed, or lacks the money: no answer, no charge
            return
        fate = self._chance()
        if fate > 0.2:
            self._publish(request)
            self.delivered[request.request_id] = request
            return
        if fate > 0.1:  # in the stream, but not acknowledged in time
            self._publish(request)
        self._publish_void(request)
        wallet.take_back(request.claim)

    def _pay(self, gateway: Gateway, request: Request) -> bool:
        wallet, claim = gateway.wallet(request.tenant_id), request.claim
        assert claim is not None
        covered = request.cost <= claim.nanos and not claim.lease.closed
        if not covered and not wallet.extend(claim, request.cost):
            return False
        wallet.spend(claim, request.cost)
        return True

    def _publish(self, request: Request) -> None:
        record = self._record(request)
        self.stream.publish(record)
        while self._chance() < SENT_AGAIN_PROBABILITY:
            self.stream.publish(record)

    def _publish_void(self, request: Request) -> None:
        self.stream.publish(voids=(UsageVoid(request.request_id, request.tenant_id, "no answer"),))

    def _record(self, request: Request) -> UsageRecord:
        assert request.claim is not None
        at = _EPOCH_NS + int(self.now * 10**9)
        return UsageRecord(
            request_id=request.request_id,
            tenant_id=request.tenant_id,
            key_id="key",
            deployment="model",
            price_class="tokens",
            api="openai.chat",
            outcome=Outcome.COMPLETED,
            admitted_unix_ns=at,
            finished_unix_ns=at,
            input_tokens=0,
            output_tokens=request.charged,
            request_bytes=0,
            response_bytes=0,
            compute_us=0,
            node="r1.s1.n1",
            attempt=1,
            gateway_id="g",
            traceparent="",
            lease_id=UUID(bytes=request.claim.lease.lease_id),
        )

    # --- the network between gateways and billing -----------------------------------------------

    async def tick(self, gateway: Gateway) -> None:
        """What a gateway does every quarter of a second."""
        for wallet in gateway.wallets.values():
            wallet.measure(self.now)
        asks = [ask for wallet in gateway.wallets.values() if (ask := self._plan(gateway, wallet))]
        if asks:
            await self._ask(gateway, asks)
        still: list[Request] = []
        for request in gateway.waiting:
            if gateway.claim(request, self.now):
                gateway.served.append(request)
            elif self.now < request.waits_until and self._worth_waiting(gateway, request):
                still.append(request)
        gateway.waiting = still

    def _plan(self, gateway: Gateway, wallet: credit.Wallet) -> credit.Ask | None:
        waiting = [_wanted(one) for one in gateway.waiting if one.tenant_id == wallet.tenant_id]
        return credit.plan_ask(wallet, waiting, self.now, gateway.heard_at)

    def _worth_waiting(self, gateway: Gateway, request: Request) -> bool:
        wallet = gateway.wallet(request.tenant_id)
        away = gateway.billing_away
        verdict = credit.judge(wallet, _wanted(request), self.now, billing_away=away)
        if verdict is credit.Verdict.REFUSE and not request.settled:
            request.settled = True
            verdict = credit.judge(wallet, _wanted(request), self.now, billing_away=away)
        return verdict is credit.Verdict.WAIT

    async def _ask(self, gateway: Gateway, asks: list[credit.Ask]) -> None:
        asker = Asker(gateway.gateway_id, gateway.run_id)
        sent, asked_at = [_sent(ask) for ask in asks], self.now
        grants: list[Answered] | None = None
        fate = self._chance()
        if not self.billing_up or fate < 0.1:
            pass  # lost
        elif fate < 0.15:
            self.late.append((asker, sent))
        else:
            grants = await self._answer(asker, sent)
            if fate < 0.2:
                grants = await self._answer(asker, sent)  # heard twice
            if 0.2 <= fate < 0.3:
                grants = None  # the reply is lost
        gateway.billing_away = grants is None
        if grants is not None:
            gateway.heard_at = self.now
        for ask, grant in zip(asks, grants or (), strict=grants is not None):
            credit.apply_grant(
                gateway.wallet(ask.tenant_id), ask, _heard(grant), asked_at, self.now
            )

    async def late_ask_arrives(self) -> None:
        """What was asked long ago is heard now; nobody waits for the answer."""
        asker, asks = self.late.pop(self.draws.randrange(len(self.late)))
        await self._answer(asker, asks)

    async def _answer(self, asker: Asker, asks: list[lending.Ask]) -> list[Answered]:
        return await answer_asks(self.store, asker, asks, self.new_id, self.now_ms())

    # --- billing --------------------------------------------------------------------------------

    async def post(self, *, crash: bool = False, all_of_it: bool = False) -> None:
        """Post some of what is pending, in any order; after a crash it will come again."""
        pending = self.stream.pending()
        batch = self.draws.sample(pending, self.draws.randint(0, len(pending)))
        if all_of_it:
            batch = pending
        self.stream.delivered = len(self.stream.messages)
        records = [record for one in batch for record in one.records]
        voids = [void for one in batch for void in one.voids]
        report = await post_usage(self.store, records, voids, self.new_id)
        assert not report.refused
        if crash:
            self.billing_up = False
        else:
            self.stream.acknowledged.update(one.sequence for one in batch)

    def start_billing(self) -> None:
        self.billing_up = True
        self.reclaimer = self._new_reclaimer()

    # --- time -----------------------------------------------------------------------------------

    async def pass_time(self, seconds: float) -> None:
        """Let the clock run; gateways tick and billing looks for what is to be reclaimed."""
        until = self.now + seconds
        while self.now < until:
            before = int(self.now)
            self.now = min(until, self.now + TICK_S)
            for gateway in list(self.gateways):
                await self.tick(gateway)
            if self.billing_up and int(self.now) != before:
                await self.reclaimer.look()

    async def step(self) -> None:
        """Something happens."""
        kinds: list[tuple[float, Callable[[], Any]]] = [(6, self._some_time)]
        for gateway in self.gateways:
            kinds += [(8, lambda g=gateway: self.send_request(g))]
            kinds += [(0.15, lambda g=gateway: self.kill_gateway(g))]
            if gateway.served:
                kinds += [(7, lambda g=gateway: self.finish_request(g))]
        running = {gateway.gateway_id for gateway in self.gateways}
        for gateway_id in {"g1", "g2", "g3", "g4"} - running:
            kinds += [(0.3, lambda g=gateway_id: self.start_gateway(g))]
        if self.billing_up:
            kinds += [(4, self.post), (0.2, lambda: self.post(crash=True))]
            kinds += [(1, self.late_ask_arrives)] if self.late else []
        else:
            kinds += [(1, self.start_billing)]
        weights = [weight for weight, _ in kinds]
        done = self.draws.choices([kind for _, kind in kinds], weights)[0]()
        if done is not None:
            await done

    async def _some_time(self) -> None:
        await self.pass_time(self.draws.choice([0.1, 0.25, 0.5, 1.0, 1.0, 3.0, 12.0, 35.0]))

    async def come_to_rest(self) -> None:
        """Nobody asks any more; what is under way ends, and all leases expire or are given back."""
        if not self.billing_up:
            self.start_billing()
        for gateway in self.gateways:
            gateway.waiting.clear()
            while gateway.served:
                self.finish_request(gateway)
        for gateway_id in list(self.dead_commits):
            self.start_gateway(gateway_id)
        self.late.clear()
        for _ in range(3):
            await self.post(all_of_it=True)
            await self.pass_time(2 * lending.TTL_MS / 1000)


def _wanted(request: Request) -> int:
    return min(request.least, request.likely) if request.settled else request.likely


def _sent(ask: credit.Ask) -> lending.Ask:
    """As it crosses the wire."""
    lease_id = UUID(bytes=ask.lease_id) if ask.lease_id else None
    return lending.Ask(
        ask.tenant_id, lease_id, ask.want_nanos, ask.need_nanos, ask.returned_nanos, ask.closing
    )


def _heard(answered: Answered) -> credit.Granted:
    """As it crosses the wire back."""
    grant = answered.grant
    lease, refusal = grant.lease, grant.refusal
    return credit.Granted(
        tenant_id=grant.tenant_id,
        lease_id=lease.lease_id.bytes if lease is not None else b"",
        granted_nanos=lease.granted_nanos if lease is not None else 0,
        posted_nanos=lease.posted_nanos if lease is not None else 0,
        currency=lease.currency if lease is not None else "",
        ttl_s=lending.TTL_MS / 1000,
        closed=refusal is lending.Refusal.CLOSED,
        refused=credit.Refused[refusal.name]
        if refusal and refusal.name in credit.Refused.__members__
        else None,
        elsewhere_nanos=answered.held_elsewhere_nanos + answered.available_nanos,
    )
