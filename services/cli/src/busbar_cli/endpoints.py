"""Where the platform is: $BUSBAR_ENDPOINTS, else $BUSBAR_HOME/endpoints.json."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from busbar_cli.failures import CommandError, Exit

_FILE = "endpoints.json"
_START = "start the platform (./just up), or set BUSBAR_ENDPOINTS to its endpoints.json"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The content of endpoints.json."""

    content: Mapping[str, Any]
    path: Path

    def admin_url(self, service: str) -> str:
        """Base address of a service's admin API."""
        url = self.content.get("admin", {}).get(service)
        if not url:
            raise CommandError(
                f"{self.path} names no address of {service}; {_START}", Exit.UNAVAILABLE
            )
        return str(url)

    @property
    def operator_token(self) -> str:
        """The token that every admin API demands; $BUSBAR_OPERATOR_TOKEN goes first."""
        token = os.environ.get("BUSBAR_OPERATOR_TOKEN") or self.content.get("keys", {}).get(
            "operator"
        )
        if not token:
            raise CommandError(f"{self.path} holds no operator key; set BUSBAR_OPERATOR_TOKEN")
        if not re.fullmatch(r"[!-~]+", str(token)):
            raise CommandError(
                "the operator token, BUSBAR_OPERATOR_TOKEN, holds a space, a line's end or a "
                "letter that is not ASCII",
                Exit.USAGE,
            )
        return str(token)

    @property
    def signing_key(self) -> Path:
        """The file of the key that seals bundles; $BUSBAR_SIGNING_KEY goes first."""
        file = os.environ.get("BUSBAR_SIGNING_KEY") or self.content.get("signing_key")
        if not file:
            raise CommandError(
                f"{self.path} names no key to seal bundles with; set BUSBAR_SIGNING_KEY to its "
                "file (busbar model key FILE makes one)"
            )
        return Path(str(file))

    @property
    def console_url(self) -> str:
        """Where the operator's console is; empty when there is none."""
        return str(self.content.get("console", ""))

    def bus_password(self, user: str) -> str:
        """A bus user's password; $BUSBAR_NATS_PASSWORD goes first."""
        password = os.environ.get("BUSBAR_NATS_PASSWORD") or self.content.get(
            "nats_credentials", {}
        ).get(user)
        if not password:
            raise CommandError(f"{self.path} holds no password of {user}; set BUSBAR_NATS_PASSWORD")
        return str(password)

    @property
    def bus_url(self) -> str:
        """Where NATS is; $BUSBAR_NATS_URL goes first."""
        url = os.environ.get("BUSBAR_NATS_URL") or self.content.get("nats")
        if not url:
            raise CommandError(f"{self.path} names no NATS; {_START}", Exit.UNAVAILABLE)
        return str(url)

    @property
    def fleet(self) -> dict[str, Any]:
        """What the bus is provisioned for; $BUSBAR_REGIONS, _SITES and _LEAF_NODES go first."""
        sites = self.content.get("sites", {})
        known = {
            "regions": self.content.get("regions"),
            "sites": list(sites) or None,
            "leaf_nodes": any("hub" in site for site in sites.values()),
        }
        return {
            name: value
            for name, value in known.items()
            if value is not None and f"BUSBAR_{name.upper()}" not in os.environ
        }


def endpoints_path() -> Path:
    """Where endpoints.json should be."""
    if named := os.environ.get("BUSBAR_ENDPOINTS"):
        return Path(named)
    return Path(os.environ.get("BUSBAR_HOME", ".busbar")) / _FILE


def find_endpoints() -> Endpoints:
    """Read endpoints.json; raises CommandError when nothing runs here."""
    path = endpoints_path()
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CommandError(f"no platform found at {path}: {_START}", Exit.UNAVAILABLE) from error
    except (OSError, ValueError) as error:
        raise CommandError(f"{path} cannot be read: {error}", Exit.UNAVAILABLE) from error
    if not isinstance(content, dict):
        raise CommandError(f"{path} is not an endpoints file", Exit.UNAVAILABLE)
    return Endpoints(content, path)
