"""The price book against itself: at each moment one price, and no other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from busbar_billing.domain.audit.findings import Breach, Check
from busbar_billing.domain.prices import PriceBook, PriceBooks


@dataclass(frozen=True, slots=True)
class RepeatedPrice:
    """A price or tier that one version says more than once."""

    version: int
    price_class: str
    component: str
    rows: int


@dataclass(frozen=True, slots=True)
class UnlikePublished:
    """A version that billing did not publish as it stands, and why that is known."""

    version: int
    detail: str


def unlike_published(*, kept: bool, warranted: bool, fits: bool, needed: bool) -> str:
    """Why a version cannot be what billing published, or "": whether it is `kept` and `warranted`,
    whether its warrant `fits` what it says, and whether one is `needed`."""
    if not kept:
        return "was published, and is gone"
    if warranted and not fits:
        return "does not say what was published: its warrant is of something else"
    if needed and not warranted:
        return "was not published by billing: it has no warrant"
    return ""


def check_published(versions: Iterable[UnlikePublished]) -> list[Breach]:
    """Each version is as billing published it."""
    return [
        Breach(Check.PRICES_PUBLISHED, f"price book {one.version}", one.detail) for one in versions
    ]


def check_versions(books: PriceBooks) -> list[Breach]:
    """Of no line do two versions begin together, or one that ends reach into an earlier one."""
    found: list[Breach] = []
    for newer, older in pairwise(books.newest_first):
        if newer.line != older.line:
            continue
        detail = _overlap(older, newer)
        if detail:
            found.append(Breach(Check.PRICES_PLAIN, f"price book {newer.version}", detail))
    return found


def _overlap(older: PriceBook, newer: PriceBook) -> str:
    until = older.effective_until_unix_ns
    if older.effective_from_unix_ns == newer.effective_from_unix_ns:
        return f"begins at the same moment as price book {older.version}"
    # What was published later may end what holds, before its end too, but not outlast what follows.
    reaches = until is not None and newer.effective_from_unix_ns < until
    if reaches and older.version > newer.version:
        return f"begins before price book {older.version}, published later, has ended"
    return ""


def check_repeated(prices: Iterable[RepeatedPrice]) -> list[Breach]:
    """Each version says each price once."""
    return [
        Breach(
            Check.PRICES_PLAIN,
            f"price book {one.version}",
            f"says {one.component} of {one.price_class} {one.rows} times",
        )
        for one in prices
    ]
