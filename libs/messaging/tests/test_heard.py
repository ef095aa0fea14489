"""What counts as news of a bucket that is read again, perhaps from a copy that lags."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from busbar_messaging.bucket_changes import (
    LAG_MAX_S,
    Deleted,
    Entry,
    Extent,
    Heard,
    Put,
    Reading,
    unix_ns_of,
)

BEGAN = datetime(2026, 11, 1, tzinfo=UTC)


def entry(key: str, value: bytes | None, sequence: int, *, after_s: float | None = None) -> Entry:
    """Stored as many seconds after the beginning as its sequence says, unless told otherwise."""
    seconds = sequence if after_s is None else after_s
    return Entry(key, value, sequence, BEGAN + timedelta(seconds=seconds))


def put(said: Entry) -> Put:
    assert said.value is not None
    return Put(said.key, said.value, said.sequence, unix_ns_of(said.stored_at))


def test_all_that_one_watch_hears_is_news() -> None:
    heard = Heard()
    said = [entry("a", b"1", 1), entry("b", b"2", 2), entry("a", b"3", 3)]

    assert [heard.change(one) for one in said] == [put(one) for one in said]
    assert heard.change(entry("b", None, 4)) == Deleted("b")


def test_what_did_not_change_is_said_again() -> None:
    heard, said = Heard(), [entry("a", b"1", 1), entry("b", b"2", 2)]
    for one in said:
        heard.change(one)

    assert [heard.change(one) for one in said] == [put(one) for one in said]


def test_an_older_value_is_no_news() -> None:
    heard = Heard()
    heard.change(entry("a", b"new", 3))

    assert heard.change(entry("a", b"old", 1)) is None
    assert heard.change(entry("b", b"never heard of, so deleted since", 2)) is None
    assert heard.change(entry("a", b"newer", 4)) == put(entry("a", b"newer", 4))


def test_what_was_deleted_does_not_come_back() -> None:
    heard = Heard()
    heard.change(entry("a", b"1", 1))
    heard.change(entry("a", None, 2))

    assert heard.change(entry("a", b"1", 1)) is None


def test_an_older_deletion_deletes_nothing() -> None:
    heard = Heard()
    heard.change(entry("a", b"again", 3))

    assert heard.change(entry("a", None, 2)) is None
    assert heard.missing({"a"}) == []


def test_a_bucket_that_was_made_anew_is_believed() -> None:
    heard = Heard()
    heard.change(entry("a", b"1", 100))
    anew = entry("a", b"2", 1, after_s=200)

    assert heard.change(anew) == put(anew)
    assert heard.change(entry("b", b"3", 2, after_s=201)) is not None


def test_a_bucket_that_went_back_to_a_snapshot_is_believed_once_that_is_known() -> None:
    heard = Heard()
    heard.change(entry("a", b"2", 2))
    back = entry("a", b"1", 1)
    assert heard.change(back) is None

    heard.begin_anew()

    assert heard.change(back) == put(back)


def test_what_is_missing_is_said_once() -> None:
    heard = Heard()
    for one in (entry("a", b"1", 1), entry("b", b"2", 2)):
        heard.change(one)

    assert heard.missing({"b"}) == ["a"]
    assert heard.missing({"b"}) == []


@pytest.mark.parametrize(
    ("newest", "entries", "expires", "waited_s", "whole"),
    [
        (7, 3, False, 0.0, True),  # as far as the leader says
        (9, 3, False, 0.0, False),  # the copy lags
        (9, 2, False, 0.0, False),  # as many entries, but some may be old ones
        (9, 2, False, LAG_MAX_S + 1, True),  # the last one was removed
        (9, 2, True, 0.0, True),  # the last one has expired
        (9, 3, True, LAG_MAX_S + 1, False),  # an entry is lacking
    ],
)
def test_a_bucket_is_read_when_it_was_heard_as_far_as_its_leader_says(
    newest: int, entries: int, *, expires: bool, waited_s: float, whole: bool
) -> None:
    reading = Reading(Extent(newest, entries, expires), now=0.0)
    for key, sequence in (("a", 3), ("b", 7)):
        reading.take(entry(key, b"", sequence))

    assert reading.is_whole(waited_s) == whole
