"""What measured work cost in energy, at the price of its site."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from busbar_errors import Rejected

from busbar_billing.domain.ledger import Account, AccountKind, Posting, Transfer, TransferKind
from busbar_billing.domain.money import checked_currency, round_half_even

MJ_PER_KWH = 3_600_000_000
KWH_NANOS_MAX = 10**12
"""A thousand units of the currency for a kilowatt-hour, either way: more is a typing error."""

_SITE = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}/[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class EnergyPrice:
    """What a kilowatt-hour costs at a site ("region/site") from a moment on; may be negative."""

    site: str
    effective_from_unix_ns: int
    currency: str
    kwh_nanos: int


@dataclass(frozen=True, slots=True)
class Spent:
    """Energy that one attempt took."""

    energy_mj: int
    ended_unix_ns: int


def checked_energy_price(price: EnergyPrice) -> EnergyPrice:
    """Return a price that may be set; raise Rejected otherwise."""
    if not _SITE.fullmatch(price.site):
        raise Rejected(f"{price.site[:80]!r} is not a site: write region/site")
    if not -KWH_NANOS_MAX <= price.kwh_nanos <= KWH_NANOS_MAX:
        raise Rejected(f"kwh_nanos must be {-KWH_NANOS_MAX} to {KWH_NANOS_MAX}")
    checked_currency(price.currency)
    return price


def site_of(node: str) -> str:
    """ "region/site" of a node's key, "region.site.node"."""
    return "/".join(node.split(".")[:2])


def cost_by_currency(spent: Sequence[Spent], prices: Sequence[EnergyPrice]) -> dict[str, int]:
    """Nanos by currency, each rounded half-even once; nothing for what ended before any price.

    `prices` are those of one site.
    """
    newest_first = sorted(prices, key=lambda one: one.effective_from_unix_ns, reverse=True)
    exact: dict[str, int] = {}
    for work in spent:
        for price in newest_first:
            if price.effective_from_unix_ns <= work.ended_unix_ns:
                cost = work.energy_mj * price.kwh_nanos
                exact[price.currency] = exact.get(price.currency, 0) + cost
                break
    return {currency: round_half_even(cost, MJ_PER_KWH) for currency, cost in exact.items()}


def energy_key(node: str, agent_run_id: str, sequence: int) -> str:
    """The idempotency key of what was stored together, from record `sequence` of the run on."""
    return f"energy_cost:{node}:{agent_run_id}:{sequence}"[:400]


def energy_cost(
    transfer_id: UUID, node: str, agent_run_id: str, sequence: int, costs: dict[str, int]
) -> Transfer | None:
    """What measured work of one node cost, from its record `sequence` on; None for nothing."""
    site = site_of(node)
    postings = [
        posting
        for currency, nanos in sorted(costs.items())
        if nanos
        for posting in (
            Posting(Account(AccountKind.ENERGY_COST, None, currency, site), nanos),
            Posting(Account(AccountKind.ENERGY_PAYABLE, None, currency), -nanos),
        )
    ]
    if not postings:
        return None
    return Transfer(
        transfer_id=transfer_id,
        kind=TransferKind.ENERGY_COST,
        idempotency_key=energy_key(node, agent_run_id, sequence),
        postings=tuple(postings),
        reason=f"energy of {node}",
    )
