"""What a customer is told whose request the money does not cover."""

from __future__ import annotations

from busbar_gateway.domain.credit import Refused, Wallet, left_nanos

_REASONS = {
    Refused.BALANCE: "the balance does not cover this request: add credit and send it again",
    Refused.BUDGET: (
        "what is left of the month's budget does not cover this request: raise the budget, or wait"
        " for the next month"
    ),
    Refused.SUSPENDED: "this tenant is suspended: ask the operator",
    Refused.UNKNOWN: "this tenant is unknown to billing: ask the operator",
}
_BUDGET_SPENT = "the month's budget is spent: raise it, or wait for the next month"

_RAISED_REASONS = {
    Refused.BALANCE: (
        "an earlier answer of this model came to more than the balance, and so may this one:"
        " add credit, ask for a shorter answer, or wait some minutes"
    ),
    Refused.BUDGET: (
        "an earlier answer of this model came to more than is left of the month's budget, and so"
        " may this one: raise it, ask for a shorter answer, or wait some minutes"
    ),
}
"""Where only what was worked in vain is in the way of a request."""

_CLAIMED = {
    Refused.BALANCE: "requests in flight claim what is left of the balance",
    Refused.BUDGET: "requests in flight claim what is left of the month's budget",
}
_NOTHING_CAME = "no credit came free in time for this request"


def why_refused(wallet: Wallet, *, raised: bool) -> str:
    """Why nothing will come that covers a request; `raised` where what is left would do, had
    nothing been worked in vain."""
    refused = wallet.refused or Refused.BALANCE
    if raised and refused in _RAISED_REASONS:
        return _RAISED_REASONS[refused]
    if refused is Refused.BUDGET and left_nanos(wallet) <= 0:
        return _BUDGET_SPENT
    return _REASONS[refused]


def why_nothing_came(wallet: Wallet) -> str:
    """Why a request waited for money as long as any does."""
    if wallet.refused is None:
        return _NOTHING_CAME
    return _CLAIMED.get(wallet.refused, _NOTHING_CAME)
