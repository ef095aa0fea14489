"""Who is who on the bus of many sites: an operator, its accounts and their users, as JWTs.

The claims are those of https://github.com/nats-io/jwt (version 2). One account holds the services'
side of every hub; each site has an account of its own, which exists at that site only, and a user
in the hubs' account whom its leaf node connects as. No seed of an account ever leaves the keyring:
a server is given JWTs, a client its own credentials.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from busbar_messaging.nkey import Kind, NKey, write_credentials
from busbar_messaging.server_config import Permissions
from busbar_messaging.site_permissions import node_permissions, site_permissions
from busbar_messaging.topology import ACKS, LEAF_ACKS, NodeId, site_domain

_SECRET_BYTES = 32
_UNLIMITED: Mapping[str, Any] = {
    "subs": -1,
    "data": -1,
    "payload": -1,
    "imports": -1,
    "exports": -1,
    "wildcards": True,
    "conn": -1,
    "leaf": -1,
}
_JETSTREAM: Mapping[str, int] = {
    "mem_storage": -1,
    "disk_storage": -1,
    "streams": -1,
    "consumer": -1,
}
_MAPPINGS: Mapping[str, Any] = {f"{LEAF_ACKS}.>": [{"subject": f"{ACKS}.>"}]}
_NS_PER_S = 1_000_000_000


@dataclass(slots=True)
class Keyring:
    """Seeds by name. One that is asked for and not there is made, so keep `seeds` afterwards."""

    issued_unix_s: int
    seeds: dict[str, str] = field(default_factory=dict[str, str])

    def key(self, kind: Kind, name: str) -> NKey:
        """The key of that name; always the same once it was made."""
        label = f"{kind.name.lower()} {name}"
        if label not in self.seeds:
            self.seeds[label] = NKey.of(kind, secrets.token_bytes(_SECRET_BYTES)).seed
        return NKey.read(self.seeds[label])


@dataclass(frozen=True, slots=True)
class SiteIdentity:
    """What a site is given. Accounts map public keys to JWTs, nodes map names to credentials."""

    account: str
    accounts: Mapping[str, str]
    leaf_credentials: str
    nodes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Identities:
    """Everybody. `services` maps users to credentials, `sites` is by (region, site)."""

    operator_jwt: str
    system_account: str
    accounts: Mapping[str, str]
    services: Mapping[str, str]
    sites: Mapping[tuple[str, str], SiteIdentity]


def identify(
    keyring: Keyring, services: Mapping[str, Permissions], nodes: Sequence[NodeId]
) -> Identities:
    """Identities of the services, and of the sites of these nodes.

    Raises ValueError when two sites would have JetStream domains of one name.
    """
    operator = keyring.key(Kind.OPERATOR, "busbar")
    system, bus = keyring.key(Kind.ACCOUNT, "SYS"), keyring.key(Kind.ACCOUNT, "BUSBAR")
    system_jwt = _account(keyring, operator, system, "SYS", {})
    sites = sorted({(node.region, node.site) for node in nodes})
    domains = [site_domain(*site) for site in sites]
    if shared := {domain for domain in domains if domains.count(domain) > 1}:
        raise ValueError(f"several sites would be called {', '.join(sorted(shared))}")

    def site_identity(region: str, site: str) -> SiteIdentity:
        name = f"{region}/{site}"
        own = keyring.key(Kind.ACCOUNT, name)
        return SiteIdentity(
            account=own.public,
            accounts={
                system.public: system_jwt,
                own.public: _account(keyring, operator, own, name, _JETSTREAM),
            },
            leaf_credentials=_user(keyring, bus, name, site_permissions(region, site)),
            nodes={
                node.node: _user(keyring, own, str(node), node_permissions(node))
                for node in nodes
                if (node.region, node.site) == (region, site)
            },
        )

    claims = {"type": "operator", "version": 2, "system_account": system.public}
    return Identities(
        operator_jwt=_jwt(keyring, operator, operator.public, "busbar", claims),
        system_account=system.public,
        accounts={
            system.public: system_jwt,
            bus.public: _account(keyring, operator, bus, "BUSBAR", _JETSTREAM, mappings=_MAPPINGS),
        },
        services={name: _user(keyring, bus, name, may) for name, may in services.items()},
        sites={at: site_identity(*at) for at in sites},
    )


def _account(
    keyring: Keyring,
    operator: NKey,
    account: NKey,
    name: str,
    jetstream: Mapping[str, int],
    *,
    mappings: Mapping[str, Any] | None = None,
) -> str:
    claims = {
        "type": "account",
        "version": 2,
        "limits": {**_UNLIMITED, **jetstream},
        "default_permissions": {"pub": {}, "sub": {}},
        **({"mappings": mappings} if mappings else {}),
    }
    return _jwt(keyring, operator, account.public, name, claims)


def _user(keyring: Keyring, account: NKey, name: str, may: Permissions) -> str:
    claims: dict[str, Any] = {
        "type": "user",
        "version": 2,
        "subs": -1,
        "data": -1,
        "payload": -1,
        "pub": {
            **({} if may.publish is None else {"allow": may.publish}),
            **({"deny": may.publish_denied} if may.publish_denied else {}),
        },
        "sub": {} if may.subscribe is None else {"allow": may.subscribe},
    }
    if may.responses_max:
        ttl_ns = int(may.responses_within.total_seconds()) * _NS_PER_S
        claims["resp"] = {"max": may.responses_max, "ttl": ttl_ns}
    key = keyring.key(Kind.USER, name)
    return write_credentials(_jwt(keyring, account, key.public, name, claims), key)


def _jwt(keyring: Keyring, issuer: NKey, subject: str, name: str, nats: Mapping[str, Any]) -> str:
    claims = {
        "iat": keyring.issued_unix_s,
        "iss": issuer.public,
        "sub": subject,
        "name": name,
        "nats": nats,
    }
    digest = hashlib.sha256(json.dumps(claims).encode()).digest()
    claims["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
    signed = f"{_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_part(claims)}"
    return f"{signed}.{_base64(issuer.sign(signed.encode()))}"


def _part(value: Mapping[str, Any]) -> str:
    return _base64(json.dumps(value, separators=(",", ":")).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
