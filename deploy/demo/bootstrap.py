"""Makes the demo tenant and deploys the demo models, through the command line like anybody.

    python deploy/demo/bootstrap.py --home HOME

Every step may be repeated: what is there already stays as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from busbar_cli.main import run
from busbar_runtime import endpoints
from busbar_runtime.home import Home, write_private_json

HERE = Path(__file__).resolve().parent
TENANT, WELCOME_USD = "demo", "10"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--home", type=Path, help="the platform's state directory")
    home = Home.of(parser.parse_args().home)
    os.environ |= {"BUSBAR_HOME": str(home.root), "BUSBAR_CACHE": str(home.cache)}

    ensure_tenant()
    endpoints.update(home, {"keys": {"demo": ensure_key(home)}})
    busbar("tenant", "topup", TENANT, WELCOME_USD, "--reference", "demo-welcome")
    say(f"tenant {TENANT} has a key and paid in {WELCOME_USD} USD")

    models = build_models(home)
    deploy(home, models)
    say(f"{len(models)} models are ready: {', '.join(model.name for model in models)}")


def say(line: str) -> None:
    print(line, flush=True)


def busbar(*arguments: str) -> dict[str, Any]:
    """The answer of a command; ends this program when it fails, after its own complaint."""
    answer = io.StringIO()
    with contextlib.redirect_stdout(answer):
        status = run([*arguments, "--json"])
    if status:
        raise SystemExit(f"busbar {' '.join(arguments)} failed with status {status}")
    return json.loads(answer.getvalue())


def ensure_tenant() -> None:
    there = [one["tenant_id"] for one in busbar("tenant", "list")["items"]]
    if TENANT not in there:
        busbar("tenant", "create", "Demo", "--tenant-id", TENANT)


def ensure_key(home: Home) -> str:
    """The demo key: the one of the last time while it is valid, else a new one.

    Billing keeps only its HMAC, so this machine's copy lies beside the other secrets.
    """
    kept_at = home.run / "demo-key.json"
    with contextlib.suppress(FileNotFoundError, ValueError):
        kept = json.loads(kept_at.read_text())
        listed = {one["key_id"]: one for one in busbar("key", "list", TENANT)["items"]}
        if kept["key_id"] in listed and not listed[kept["key_id"]]["revoked_at"]:
            return str(kept["key"])
    made = busbar("key", "create", TENANT, "--name", "demo")
    write_private_json(kept_at, {"key_id": made["key_id"], "key": made["key"]})
    return str(made["key"])


def build_models(home: Home) -> list[Path]:
    """The directories of the demo models; nothing to do when they are built already."""
    build = [sys.executable, str(HERE / "build" / "build_models.py"), "--cache", str(home.cache)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    names = sorted(manifest.parent.name for manifest in (HERE / "models").glob("*/busbar.yaml"))
    return [home.cache / "models" / name for name in names]


def deploy(home: Home, models: list[Path]) -> None:
    file = home.run / "demo-deployments.yaml"
    wanted = [{"name": model.name, "path": str(model), "replicas": 1} for model in models]
    file.write_text(yaml.safe_dump(wanted, sort_keys=False))
    busbar("deploy", str(file), "--approve", "--wait", "--timeout", "240")


if __name__ == "__main__":
    main()
