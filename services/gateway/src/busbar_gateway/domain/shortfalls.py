"""What a customer is told whose request the money does not cover."""

from __future__ import annotations

from busbar_gateway.domain.credit import Refused, Wallet, here_nanos, left_nanos

_REASONS = {
    Refused.BALANCE: (
        "the balance does not cover this request, which may cost {needed} where {rest} is left:"
        " add credit and send it again"
    ),
    Refused.BUDGET: (
        "what is left of the month's budget does not cover this request, which may cost {needed}"
        " where {rest} is left: raise the budget, or wait for the next month"
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
_ELSEWHERE = {
    Refused.BALANCE: "the rest of the balance",
    Refused.BUDGET: "the rest of the month's budget",
}
_COMES_BACK = (
    " is lent to other gateways, or to one that has ended, and comes back within half a minute:"
    " try again"
)
_NOTHING_CAME = "no credit came free in time for this request"


def why_refused(wallet: Wallet, *, raised: bool, needed_nanos: int, rest_nanos: int) -> str:
    """Why nothing will come that covers a request; `raised` where what is left would do, had
    nothing been worked in vain."""
    refused = wallet.refused or Refused.BALANCE
    if raised and refused in _RAISED_REASONS:
        return _RAISED_REASONS[refused]
    if refused is Refused.BUDGET and left_nanos(wallet) <= 0:
        return _BUDGET_SPENT
    return _REASONS[refused].format(needed=_amount(needed_nanos), rest=_amount(rest_nanos))


def why_nothing_came(wallet: Wallet, lacking_nanos: int) -> str:
    """Why a request waited as long as any does for what it lacks."""
    refused = wallet.refused
    if refused not in _ELSEWHERE:
        return _NOTHING_CAME
    if here_nanos(wallet) < lacking_nanos:
        return _ELSEWHERE[refused] + _COMES_BACK
    return _CLAIMED[refused]


def _amount(nanos: int) -> str:
    """Of the tenant's currency, which only billing knows before it has lent anything."""
    whole, part = divmod(max(0, nanos), 10**9)
    return f"{whole}.{part:09}".rstrip("0").removesuffix(".")
