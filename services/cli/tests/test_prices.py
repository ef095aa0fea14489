"""What is shown of the price book."""

from __future__ import annotations

from typing import Any

from busbar_cli.commands.prices import ends_of, what_changes


def book(
    version: int, since: str, until: str | None = None, tenant_id: str | None = None
) -> dict[str, Any]:
    return {
        "version": version,
        "currency": "USD",
        "tenant_id": tenant_id,
        "effective_from": since,
        "effective_until": until,
    }


def test_a_version_holds_until_it_says_or_until_the_next_of_its_line() -> None:
    books = [
        book(3, "2026-11-01T00:00:00Z"),
        book(1, "2026-01-01T00:00:00Z"),
        book(2, "2026-06-01T00:00:00.5Z"),
        book(4, "2026-07-01T00:00:00Z", "2026-08-01T00:00:00Z", "acme"),
        book(5, "2026-09-01T00:00:00Z", None, "acme"),
        book(6, "2026-07-15T12:00:00Z", "2026-07-16T00:00:00Z", "acme"),
    ]

    assert ends_of(books) == {
        1: "2026-06-01T00:00:00.5Z",
        2: "2026-11-01T00:00:00Z",
        3: None,
        4: "2026-07-15T12:00:00Z",
        5: None,
        6: "2026-07-16T00:00:00Z",
    }


def test_who_publishes_is_told_what_ends_and_what_follows() -> None:
    own = {"version": 2, "tenant_id": "acme", "effective_until": None}
    everybodys = own | {"version": 3, "tenant_id": None}
    new = book(4, "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z", "acme")

    assert what_changes(new | {"ends": own, "followed_by": everybodys}) == [
        "it ends price book 2, which had no end",
        "once it has ended price book 3, everybody's, holds; price book 2 does not come back",
    ]
    assert what_changes(new | {"ends": None, "followed_by": own}) == [
        "once it has ended price book 2 holds"
    ]
    assert what_changes(new | {"ends": None, "followed_by": None}) == []
