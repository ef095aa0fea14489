"""Money and what it is paid for, for people: exact decimals from integers, and money back."""

from __future__ import annotations

import re
from decimal import Decimal

from busbar_cli.failures import CommandError, Exit

NANOS = 1_000_000_000
_DECIMALS_MIN = 2
_DECIMALS_MAX = 9
_SYMBOLS = {"USD": "$"}
_COUNTED_PER_UNIT = {"compute_second": 1_000_000, "megabyte": 1_000_000}
"""Usage records count microseconds and bytes of these, and one of anything else."""
_INT64_MAX = 2**63 - 1
_WRITTEN = re.compile(
    r"-?\$?(?P<whole>\d{1,3}(,\d{3})+|\d{1,30})(\.(?P<decimals>\d{1,60}))?", re.ASCII
)
"""A comma stands before three digits: 10,50 would else be read as a thousand and fifty."""
_EITHER = re.compile(r"-?\$?\d{1,3}(,\d{3})+", re.ASCII)
"""Thousands to some, and a decimal comma to others: 1,000 is a thousand, or one."""


def show_amount(amount_nanos: int, currency: str = "USD") -> str:
    """All the decimals it has, at least two: $1.50, -$0.000000012, 3.00 EUR."""
    whole, rest = divmod(abs(amount_nanos), NANOS)
    decimals = f"{rest:0{_DECIMALS_MAX}d}".rstrip("0").ljust(_DECIMALS_MIN, "0")
    sign = "-" if amount_nanos < 0 else ""
    number = f"{whole:,}.{decimals}"
    symbol = _SYMBOLS.get(currency)
    return f"{sign}{symbol}{number}" if symbol else f"{sign}{number} {currency}"


def show_quantity(counted: int, component: str) -> str:
    """A quantity that a usage record counted, in the unit its component is named after: of
    compute seconds 12,851,785 are 12.851785."""
    whole, rest = divmod(counted, _COUNTED_PER_UNIT.get(component, 1))
    decimals = f"{rest:06d}".rstrip("0")
    return f"{whole:,}.{decimals}" if decimals else f"{whole:,}"


def read_amount(text: str) -> int:
    """Nanos of an amount such as "10", "0.25" or "$1,000.50"; raises CommandError."""
    if _EITHER.fullmatch(text.strip()):
        plain = text.strip().replace(",", "")
        raise CommandError(
            f"{text!r} can be read in two ways; without a comma: {plain}, or with a decimal point",
            Exit.USAGE,
        )
    written = _WRITTEN.fullmatch(text.strip())
    if written is None:
        raise CommandError(f"{text!r} is not an amount; write 10 or 0.25", Exit.USAGE)
    if len((written["decimals"] or "").rstrip("0")) > _DECIMALS_MAX:
        raise CommandError(f"{text!r} has more than {_DECIMALS_MAX} decimals", Exit.USAGE)
    nanos = Decimal(written[0].replace("$", "").replace(",", "")) * NANOS
    if not -_INT64_MAX <= nanos <= _INT64_MAX:
        raise CommandError(f"{text!r} is too large", Exit.USAGE)
    return int(nanos)
