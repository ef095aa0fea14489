"""Between which accounts a transfer of each kind moves money, and which way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum

from busbar_billing.domain.ledger import AccountKind, TransferKind


class Way(IntEnum):
    """What a posting may do to an account."""

    TAKES = -1
    EITHER = 0
    GIVES = 1


_MOVES: Mapping[str, Mapping[str, Way]] = {
    TransferKind.CHARGE: {
        AccountKind.TENANT_HELD: Way.TAKES,
        AccountKind.TENANT_AVAILABLE: Way.TAKES,
        AccountKind.TENANT_RECEIVABLE: Way.TAKES,
        AccountKind.REVENUE: Way.GIVES,
        AccountKind.ROUNDING: Way.EITHER,
    },
    TransferKind.VOID: {
        AccountKind.TENANT_HELD: Way.GIVES,
        AccountKind.TENANT_AVAILABLE: Way.GIVES,
        AccountKind.TENANT_RECEIVABLE: Way.GIVES,
        AccountKind.REVENUE: Way.TAKES,
        AccountKind.ROUNDING: Way.EITHER,
    },
    TransferKind.LEASE_HOLD: {
        AccountKind.TENANT_AVAILABLE: Way.TAKES,
        AccountKind.TENANT_HELD: Way.GIVES,
    },
    TransferKind.LEASE_RELEASE: {
        AccountKind.TENANT_HELD: Way.TAKES,
        AccountKind.TENANT_AVAILABLE: Way.GIVES,
    },
    TransferKind.RECEIVABLE_PAID: {
        AccountKind.TENANT_AVAILABLE: Way.TAKES,
        AccountKind.TENANT_RECEIVABLE: Way.GIVES,
    },
    # Where electricity has a negative price it is the other way round.
    TransferKind.ENERGY_COST: {
        AccountKind.ENERGY_COST: Way.EITHER,
        AccountKind.ENERGY_PAYABLE: Way.EITHER,
    },
}
"""Of the kinds that carry no warrant: nothing else says where their money may come from."""


def misplaced(kind: str, lines: Iterable[tuple[str, int]]) -> Iterable[str]:
    """What a transfer of this kind never does; `lines` are kinds of accounts and nanos."""
    moves = _MOVES.get(kind)
    if moves is None:
        return
    for account_kind, nanos in lines:
        way = moves.get(account_kind)
        if way is None:
            yield f"is a {kind} and moves {nanos} nanos of {account_kind}"
        elif nanos * way < 0:
            verb = "takes from" if way is Way.GIVES else "gives to"
            yield f"is a {kind} and {verb} {account_kind}: {nanos} nanos"
