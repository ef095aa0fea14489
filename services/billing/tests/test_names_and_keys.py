"""What may be called what, and what an API key looks like."""

from __future__ import annotations

import re

import pytest
from busbar_billing.domain.keys import key_digest, key_prefix, key_text
from busbar_billing.domain.names import (
    LOOKALIKES,
    checked_deployments,
    checked_name,
    checked_tenant_id,
)
from busbar_errors import Rejected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "x" * 101,
        "new\nline",
        "nul\x00",
        "bell\x07",
        "right\u202eto left",
        "zero\u200bwidth",
        "line\u2028break",
        "lone\ud800surrogate",
        "private\ue000use",
        "zero\u200djoiner",
        "\u3164",
        "fil\u115fler",
        "variant\ufe0f",
        "blank\u2800",
        "\u0410cme",  # a Cyrillic capital A
        "Acm\u0435 Ltd",
        "\u0391cme",  # a Greek capital Alpha
        "Бан\u03bb",
    ],
)
def test_a_name_that_cannot_be_shown_safely_is_refused(text: str) -> None:
    with pytest.raises(Rejected):
        checked_name(text)


@pytest.mark.parametrize(
    "text",
    [
        "Ácme & Söhne",
        "株式会社",
        "'; DROP TABLE tenants; --",
        "a b",
        "\u041e\u041e\u041e Ромашка",
        "Яндекс Cloud™",
        "Ελληνική Τράπεζα AE",
        "日本Bank2",
        "शक्ति",
        "ACME №½",
    ],
)
def test_a_name_in_any_script_is_fine(text: str) -> None:
    assert checked_name(f" {text} ") == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Acme\u00a0 \u3000Ltd", "Acme Ltd"),
        ("\uff21cme \U0001d40b\uff54\uff44", "Acme Ltd"),
        ("o\ufb03ce \uff11", "office 1"),
        ("\uff8a\uff9f\uff9d", "パン"),
        ("Cafe\u0301", "Café"),
    ],
)
def test_a_name_has_one_way_of_being_written(text: str, shown: str) -> None:
    assert checked_name(text) == shown


def test_lookalikes_are_single_letters_that_differ() -> None:
    imitating, latin = LOOKALIKES

    assert len(imitating) == len(set(imitating)) == len(latin)
    assert not {*imitating} & {*latin}


@pytest.mark.parametrize("text", ["", "Acme", "a b", "-a", "a" * 64, "a;b", "ünder"])
def test_a_tenant_id_must_fit_a_subject(text: str) -> None:
    with pytest.raises(Rejected):
        checked_tenant_id(text)


def test_an_allow_list_is_sorted_and_without_repeats() -> None:
    assert checked_deployments(["simple", "echo", "simple"]) == ["echo", "simple"]
    with pytest.raises(Rejected):
        checked_deployments(["no way"])
    with pytest.raises(Rejected):
        checked_deployments([f"d{n}" for n in range(1_001)])


def test_a_key_is_text_once_and_an_hmac_ever_after() -> None:
    text = key_text(bytes(range(32)))

    assert re.fullmatch(r"bb_[A-Za-z0-9_-]{43}", text)
    assert key_prefix(text) == text[:9]
    # RFC 4231's construction, checked against an independent computation.
    assert key_digest(b"secret", "bb_x").hex() == (
        "7bf0c8e448f5a138f40b3834acaa887ba7ff723313dbe77ce8b1622909a88fa9"
    )
    assert key_digest(b"secret", "bb_x") != key_digest(b"other", "bb_x")
