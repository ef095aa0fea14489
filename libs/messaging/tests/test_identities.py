"""Keys, credentials and JWTs: the forms that NATS servers and clients read."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any

import pytest
from busbar_messaging.identities import Keyring, identify
from busbar_messaging.nkey import (
    Kind,
    NKey,
    is_credentials,
    read_credentials,
    write_credentials,
)
from busbar_messaging.server_config import Permissions, read_permissions
from busbar_messaging.topology import NodeId

# From https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/nkey_auth
SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
PUBLIC = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
CONFIG = """
listen: $SOMEWHERE   # a word, and a comment
accounts { A { users: [
    { user: root, password: $P }
    { user: clerk
      permissions: {
        publish: { allow: [ "a.>", "b" ], deny: [ "a.b" ] }   # both
        subscribe: { allow: "_INBOX.>" }
        allow_responses: { max: 1, expires: "10s" } } }
] } }
"""


def claims_of(jwt: str) -> dict[str, Any]:
    part = jwt.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def test_a_key_is_what_nats_makes_of_its_seed() -> None:
    key = NKey.read(SEED)

    assert (key.kind, key.public, key.seed) == (Kind.USER, PUBLIC, SEED)
    assert SEED not in repr(key)


@pytest.mark.parametrize(
    "text", ["", "S", SEED[:-1], SEED.replace("3", "4"), PUBLIC, SEED.lower(), "ä"]
)
def test_what_is_no_seed_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not the seed of a key"):
        NKey.read(text)


def test_credentials_read_back_and_are_no_password() -> None:
    text = write_credentials("a.b.c", NKey.read(SEED))

    assert is_credentials(text)
    assert not is_credentials("hunter2")
    jwt, key = read_credentials(text)
    assert (jwt, key.public) == ("a.b.c", PUBLIC)


def test_credentials_without_a_seed_are_refused() -> None:
    text = write_credentials("a.b.c", NKey.read(SEED)).partition("-----BEGIN USER")[0]

    with pytest.raises(ValueError, match="need a NATS USER JWT and a USER NKEY SEED"):
        read_credentials(text)


def test_permissions_are_read_from_a_servers_configuration() -> None:
    found = read_permissions(CONFIG)

    assert found == {
        "root": Permissions(),
        "clerk": Permissions(("a.>", "b"), ("_INBOX.>",), ("a.b",), 1, timedelta(seconds=10)),
    }


@pytest.mark.parametrize("broken", ["accounts { A {", "accounts: [ a", 'listen: "x', "a: }"])
def test_a_broken_configuration_is_refused(broken: str) -> None:
    with pytest.raises(ValueError, match=r"missing|not understood"):
        read_permissions(broken)


def test_a_site_is_given_nothing_of_anybody_else() -> None:
    keyring = Keyring(issued_unix_s=0)
    nodes = [NodeId("r1", "s1", "n1"), NodeId("r1", "s1", "n2"), NodeId("r2", "s2", "n1")]
    found = identify(keyring, {"gateway": Permissions(("a",), ("b",))}, nodes)

    site = found.sites["r1", "s1"]
    given = json.dumps([site.account, dict(site.accounts), site.leaf_credentials, dict(site.nodes)])
    of_site = {label for label, seed in keyring.seeds.items() if seed in given}
    assert of_site == {"user r1/s1", "user r1/s1/n1", "user r1/s1/n2"}
    assert found.system_account in site.accounts
    assert set(site.accounts) & set(found.accounts) == {found.system_account}


def test_sites_that_would_share_a_name_are_refused() -> None:
    nodes = [NodeId("a_b", "c", "n1"), NodeId("a", "b_c", "n1")]

    with pytest.raises(ValueError, match="several sites would be called a_b_c"):
        identify(Keyring(0), {}, nodes)


def test_identities_stay_the_same_with_a_kept_keyring() -> None:
    nodes = [NodeId("r1", "s1", "n1")]
    first = Keyring(issued_unix_s=0)
    before = identify(first, {}, nodes)

    assert identify(Keyring(0, dict(first.seeds)), {}, nodes) == before
    assert identify(Keyring(0), {}, nodes).operator_jwt != before.operator_jwt


def test_a_users_jwt_says_what_it_may() -> None:
    may = Permissions(("a",), ("b",), ("c",), 1, timedelta(seconds=10))
    jwt, key = read_credentials(identify(Keyring(7), {"billing": may}, []).services["billing"])

    claims = claims_of(jwt)
    assert claims["sub"] == key.public
    assert claims["iat"] == 7
    assert claims["nats"]["pub"] == {"allow": ["a"], "deny": ["c"]}
    assert claims["nats"]["sub"] == {"allow": ["b"]}
    assert claims["nats"]["resp"] == {"max": 1, "ttl": 10_000_000_000}
