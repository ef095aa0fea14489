"""API keys in memory."""

from __future__ import annotations

import hmac
import time
from threading import Event

import pytest
from busbar_contracts.billing.v1.keys_pb2 import (
    KEY_SCOPE_ADMINISTER,
    KEY_SCOPE_READ_USAGE,
    KEY_SCOPE_SERVE,
    ApiKey,
    KeyScope,
)
from busbar_gateway.adapters.key_ring import KeyRing
from busbar_gateway.domain.failures import Forbidden, Unauthenticated
from busbar_messaging.bucket_changes import Current, Deleted, Put

SECRET = b"secret"
KEY = "bb_0123456789"


def name_of(key: str) -> str:
    return hmac.new(SECRET, key.encode(), "sha256").hexdigest()


def ring(expires_unix_ms: int = 0) -> KeyRing:
    keys = KeyRing(SECRET)
    value = ApiKey(
        key_id="k", tenant_id="t", deployments=["m"], expires_unix_ms=expires_unix_ms
    ).SerializeToString()
    keys.apply(Put(name_of(KEY), value, 1))
    keys.apply(Current())
    return keys


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER   {KEY} \t"])
def test_a_known_key_says_who_calls(header: str) -> None:
    caller = ring().authenticate(header)

    assert (caller.tenant_id, caller.key_id, caller.deployments) == ("t", "k", frozenset({"m"}))


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        KEY,
        f"Basic {KEY}",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY} x",
        "Bearer ' OR 1=1 --",
        "Bearer \x00\udcff\u2028",
        f"Bearer {'x' * 10_000}",
        f"Bearer {name_of(KEY)}",
    ],
)
def test_anything_else_is_refused(header: str | None) -> None:
    with pytest.raises(Unauthenticated):
        ring().authenticate(header)


@pytest.mark.parametrize("scopes", [[KEY_SCOPE_READ_USAGE], [KEY_SCOPE_ADMINISTER]])
def test_a_key_that_is_not_for_serving_is_known_and_refused(
    scopes: list[KeyScope.ValueType],
) -> None:
    keys = KeyRing(SECRET)
    value = ApiKey(key_id="k", tenant_id="t", scopes=scopes).SerializeToString()
    keys.apply(Put(name_of(KEY), value, 1))

    for _ in range(2):
        with pytest.raises(Forbidden, match="lacks the scope serve"):
            keys.authenticate(f"Bearer {KEY}")


def test_a_key_says_its_project() -> None:
    keys = KeyRing(SECRET)
    scopes = [KEY_SCOPE_SERVE, KEY_SCOPE_ADMINISTER]
    value = ApiKey(key_id="k", tenant_id="t", scopes=scopes, project_id="prj_1")
    keys.apply(Put(name_of(KEY), value.SerializeToString(), 1))

    assert keys.authenticate(f"Bearer {KEY}").project_id == "prj_1"


def test_a_revoked_key_is_refused_at_once() -> None:
    keys = ring()
    keys.authenticate(f"Bearer {KEY}")
    keys.apply(Deleted(name_of(KEY)))

    with pytest.raises(Unauthenticated):
        keys.authenticate(f"Bearer {KEY}")


def test_what_a_key_may_use_changes_at_once() -> None:
    keys = ring()
    keys.authenticate(f"Bearer {KEY}")
    keys.apply(Put(name_of(KEY), ApiKey(key_id="k", tenant_id="other").SerializeToString(), 2))

    assert keys.authenticate(f"Bearer {KEY}").tenant_id == "other"


def test_a_key_that_expires_while_in_use_is_refused() -> None:
    moment = Event()
    keys = ring(round(time.time() * 1000) + 200)
    keys.authenticate(f"Bearer {KEY}")
    moment.wait(0.25)

    with pytest.raises(Unauthenticated, match="expired"):
        keys.authenticate(f"Bearer {KEY}")


def test_an_expired_key_is_refused() -> None:
    ring(round(time.time() * 1000) + 60_000).authenticate(f"Bearer {KEY}")
    with pytest.raises(Unauthenticated, match="expired"):
        ring(round(time.time() * 1000) - 1).authenticate(f"Bearer {KEY}")


def test_what_cannot_be_read_is_left_out() -> None:
    keys = ring()
    keys.apply(Put("not hex", b"", 2))
    keys.apply(Put(name_of("bb_other"), b"\xff\xff", 3))

    with pytest.raises(Unauthenticated):
        keys.authenticate("Bearer bb_other")
    assert keys.authenticate(f"Bearer {KEY}").tenant_id == "t"
