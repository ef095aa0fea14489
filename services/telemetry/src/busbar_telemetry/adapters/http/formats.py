"""How the console writes durations, amounts and times."""

from __future__ import annotations

from datetime import UTC, datetime

_NS_PER_US, _NS_PER_MS, _NS_PER_S = 1_000, 1_000_000, 1_000_000_000
_THOUSAND = 1_000
_UNKNOWN = "\N{EN DASH}"
_SECONDS_PER_MINUTE = 60


def duration(ns: int) -> str:
    """Three significant digits or so, in the unit that fits."""
    if ns < _NS_PER_MS:
        return f"{ns / _NS_PER_US:.0f} µs"
    if ns < _NS_PER_S:
        ms = ns / _NS_PER_MS
        return f"{ms:.2f} ms" if ms < 10 else f"{ms:.1f} ms"  # noqa: PLR2004
    seconds = ns / _NS_PER_S
    if seconds < _SECONDS_PER_MINUTE:
        return f"{seconds:.2f} s"
    return f"{seconds // _SECONDS_PER_MINUTE:.0f} min {seconds % _SECONDS_PER_MINUTE:.0f} s"


def amount(nanos: int | None) -> str:
    """Dollars, exact, without needless zeros but with cents."""
    if nanos is None:
        return _UNKNOWN
    sign, whole, part = "-" if nanos < 0 else "", abs(nanos) // 10**9, abs(nanos) % 10**9
    decimals = f"{part:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}${whole:,}.{decimals}"


def count(value: float | None) -> str:
    """A number with thousands set apart; a rate with one decimal while it is small."""
    if value is None:
        return _UNKNOWN
    if isinstance(value, float) and 0 < value < _THOUSAND:
        return f"{value:.1f}"
    return f"{value:,.0f}"


def ago(seconds: float) -> str:
    """An age."""
    if seconds < _SECONDS_PER_MINUTE:
        return f"{seconds:.0f} s"
    minutes = seconds / _SECONDS_PER_MINUTE
    return f"{minutes:.0f} min" if minutes < _SECONDS_PER_MINUTE else f"{minutes / 60:.1f} h"


def clock_ms(unix_ms: int) -> str:
    """Time of day in UTC, to the second."""
    return _utc(unix_ms / 1000).strftime("%H:%M:%S")


def clock_ns(unix_ns: int) -> str:
    """Time of day in UTC, to the millisecond."""
    return _utc(unix_ns / _NS_PER_S).strftime("%H:%M:%S.%f")[:-3]


def date_ns(unix_ns: int) -> str:
    """Date and time in UTC."""
    return _utc(unix_ns / _NS_PER_S).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"


def percent(fraction: float) -> str:
    """For the geometry of pictures."""
    return f"{100 * fraction:.3f}%"


def _utc(unix_s: float) -> datetime:
    # Senders choose their timestamps; what no calendar holds is shown as its end.
    try:
        return datetime.fromtimestamp(unix_s, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.max.replace(tzinfo=UTC)


FILTERS = {
    "duration": duration,
    "amount": amount,
    "count": count,
    "ago": ago,
    "clock_ms": clock_ms,
    "clock_ns": clock_ns,
    "date_ns": date_ns,
    "percent": percent,
}
