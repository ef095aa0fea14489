"""Which addresses on the web we send to: public ones, and what the operator allows besides.

An address is read once, here; what is sent follows from the parts and never from a second
reading, so that no two parsers can disagree about where it goes.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias
from urllib.parse import urlsplit

from busbar_errors import Rejected

URL_CHARACTERS_MAX = 2_000

Network: TypeAlias = IPv4Network | IPv6Network
Address: TypeAlias = IPv4Address | IPv6Address

_HTTP_PORT, _HTTPS_PORT, _PORT_MAX = 80, 443, 65_535
_UNPRIVILEGED = 1_024
"""Below this are other people's services: mail, name servers, shells."""
_HOST_CHARACTERS_MAX = 253
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_URL = re.compile(r"[!-\[\]-~]+")  # printable ASCII without blanks and backslashes
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_INSIDE = ("localhost", "local", "internal", "intranet", "lan", "home", "corp", "arpa")
"""Last labels of names that only an inside network answers."""

# https://www.iana.org/assignments/iana-ipv4-special-registry, what is not globally reachable, with
# multicast and the address at which Azure's machines reach their host.
_NOT_PUBLIC_4 = [
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
]
# Everything public is in 2000::/3; that leaves out loopback, link-local, unique local, NAT64.
_PUBLIC_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = [
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address inside
        "3fff::/20",
    )
]


@dataclass(frozen=True, slots=True)
class TargetPolicy:
    """What the operator allows besides public addresses over https."""

    allow_http: bool = False
    allowed_networks: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send to."""

    scheme: str
    host: str
    """A name, or an address without brackets."""
    port: int
    path: str
    """With the query."""

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = _HTTPS_PORT if self.scheme == "https" else _HTTP_PORT
        return host if self.port == usual else f"{host}:{self.port}"


def read_target(url: str, policy: TargetPolicy) -> Target:
    """Read a URL; raise Rejected, with the reason, when we would not send there."""
    if len(url) > URL_CHARACTERS_MAX or not _URL.fullmatch(url):
        raise Rejected("url must be printable ASCII without blanks, at most 2,000 characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Rejected(f"url cannot be read: {error}") from error
    if parts.scheme != "https" and not (parts.scheme == "http" and policy.allow_http):
        raise Rejected("url must begin with https://")
    if "@" in parts.netloc:
        raise Rejected("url must not hold a user or password: messages are signed instead")
    if parts.fragment:
        raise Rejected("url must not have a fragment")
    host = _checked_host(parts.hostname or "", policy)
    if port is None:
        port = _HTTPS_PORT if parts.scheme == "https" else _HTTP_PORT
    if port not in {_HTTP_PORT, _HTTPS_PORT} and not _UNPRIVILEGED <= port <= _PORT_MAX:
        raise Rejected(f"url's port must be 80, 443 or from {_UNPRIVILEGED} up")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port, path)


def _checked_host(host: str, policy: TargetPolicy) -> str:
    if "%" in host:
        raise Rejected("url must name a host without a zone or escapes")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return _checked_host_name(host, policy)
    check_address(address, policy)
    return str(address)


def _checked_host_name(host: str, policy: TargetPolicy) -> str:
    labels = host.split(".")
    if len(host) > _HOST_CHARACTERS_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        raise Rejected("url's host must be a name such as example.com or an IP address")
    if _NUMBER.fullmatch(labels[-1]):
        # Resolvers read 2130706433, 0x7f.1 and 0177.0.0.1 as addresses, too.
        raise Rejected("url's host must be a name, or an address in its usual notation")
    inside = len(labels) == 1 or labels[-1] in _INSIDE
    if inside and not policy.allowed_networks:
        raise Rejected("url's host must be a public name: nothing inside a network is called")
    return host


def check_address(address: Address, policy: TargetPolicy) -> None:
    """Raise Rejected when we would not connect to an address."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address in network for network in policy.allowed_networks):
        return
    if not _is_public(address):
        raise Rejected(f"{address} is not a public address")


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    if address.scope_id is not None or address not in _PUBLIC_6:
        return False
    return not any(address in network for network in _NOT_PUBLIC_6)
