"""Amounts: whole nanos (1e-9) of a currency, never floats.

`Nanos` is a plain int; what bounds it is int64, the width of every message and column.
"""

from __future__ import annotations

import re

from busbar_errors import Rejected

from busbar_billing.domain import currencies

NANOS = 10**9
_DECIMALS_MIN = 2
AMOUNT_NANOS_MAX = 2**63 - 1
TOP_UP_NANOS_MAX = 10**15
"""A million units of the currency: more at once is a typing error."""

_CURRENCY = re.compile(r"[A-Z]{3}")


def round_half_even(numerator: int, denominator: int) -> int:
    """`numerator / denominator` as the nearest integer, ties to the even one.

    Exact for any size and sign; `denominator` must be positive.
    """
    quotient, remainder = divmod(numerator, denominator)
    twice = 2 * remainder
    if twice > denominator or (twice == denominator and quotient % 2 == 1):
        return quotient + 1
    return quotient


def say_amount(amount_nanos: int, currency: str) -> str:
    """An amount as refusals tell it, to people and to programs: 0.000014 USD (14000 nanos)."""
    whole, part = divmod(abs(amount_nanos), NANOS)
    decimals = f"{part:09d}".rstrip("0").ljust(_DECIMALS_MIN, "0")
    sign = "-" if amount_nanos < 0 else ""
    return f"{sign}{whole:,}.{decimals} {currency} ({amount_nanos} nanos)"


def checked_currency(code: str) -> str:
    """Return `code` when it is an active currency of ISO 4217; raise Rejected otherwise."""
    if not _CURRENCY.fullmatch(code):
        raise Rejected(
            f"{code[:20]!r} is not a currency code: use three capital letters, as in USD"
        )
    if code not in currencies.ACTIVE:
        raise Rejected(f"{code} is not a currency that is in use (ISO 4217): check the code")
    return code


def checked_top_up(amount_nanos: int) -> int:
    """Return an amount that may be topped up; raise Rejected otherwise."""
    if amount_nanos <= 0:
        raise Rejected(f"a top-up adds money: amount_nanos must be positive, not {amount_nanos}")
    if amount_nanos > TOP_UP_NANOS_MAX:
        raise Rejected(f"amount_nanos must be at most {TOP_UP_NANOS_MAX} (a million units)")
    return amount_nanos


def checked_given(amount_nanos: int) -> int:
    """Return an amount that we may give a tenant; raise Rejected otherwise."""
    if not 0 < amount_nanos <= TOP_UP_NANOS_MAX:
        raise Rejected(f"amount_nanos must be 1 to {TOP_UP_NANOS_MAX}, not {amount_nanos}")
    return amount_nanos
