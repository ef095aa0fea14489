"""Fresh secrets for a new installation, on standard output.

    python3 deploy/make_secrets.py compose > .env
    python3 deploy/make_secrets.py kubernetes | kubectl apply -f -
    python3 deploy/make_secrets.py kubernetes-hub | kubectl apply -f -   # all but the bus's

Running it again makes new ones: an installation that has data keeps what it has.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import stat
import sys

NAMESPACE = "busbar"
BUS_USERS = ("provisioner", "gateway", "billing", "scheduler", "agent", "telemetry", "operator")


def fresh() -> dict[str, dict[str, str]]:
    """Kubernetes secret name → key → value; hex, so that all may stand in URLs and quotes."""
    return {
        "busbar-nats": {user: secrets.token_hex(24) for user in BUS_USERS},
        "busbar-postgres": {role: secrets.token_hex(24) for role in ("admin", "billing")},
        "busbar-operator": {"token": secrets.token_hex(32)},
        "busbar-keys": {"hmac": secrets.token_hex(32)},
    }


def compose(made: dict[str, dict[str, str]]) -> str:
    """The variables that compose.yaml asks for, as an env file."""
    lines = {f"NATS_{user.upper()}_PASSWORD": made["busbar-nats"][user] for user in BUS_USERS}
    for role, password in made["busbar-postgres"].items():
        lines[f"POSTGRES_{role.upper()}_PASSWORD"] = password
    lines["OPERATOR_TOKEN"] = made["busbar-operator"]["token"]
    lines["KEY_HMAC_SECRET"] = made["busbar-keys"]["hmac"]
    return "".join(f"{name}={value}\n" for name, value in lines.items())


def kubernetes(made: dict[str, dict[str, str]]) -> str:
    """The Secrets that deploy/kubernetes refers to, as a List."""
    items = [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "type": "Opaque",
            "stringData": data,
        }
        for name, data in made.items()
    ]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=2) + "\n"


def kubernetes_hub(made: dict[str, dict[str, str]]) -> str:
    """The same without passwords of the bus, whose users make_identities.py makes for a fleet."""
    return kubernetes({name: data for name, data in made.items() if name != "busbar-nats"})


_WRITERS = {"compose": compose, "kubernetes": kubernetes, "kubernetes-hub": kubernetes_hub}


def main() -> int:
    """Write what was asked for; a file it goes to becomes private."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=list(_WRITERS))
    write = _WRITERS[parser.parse_args().target]
    if stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode):
        os.fchmod(sys.stdout.fileno(), 0o600)
    sys.stdout.write(write(fresh()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
