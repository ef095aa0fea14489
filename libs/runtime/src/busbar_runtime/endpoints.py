"""endpoints.json: where everything of a running platform is, for people, tests and scripts."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from typing import Any

from busbar_runtime.home import Home, write_private_json


def read(home: Home) -> dict[str, Any]:
    """The present content; empty when nothing has been started here."""
    try:
        return json.loads(home.endpoints_file.read_text())
    except FileNotFoundError:
        return {}


def update(home: Home, changes: Mapping[str, Any], *, replace: bool = False) -> None:
    """Set the given keys, merging into `keys`; the others stay, unless all are replaced.

    Safe against other writers of the same home: the launcher keeps `pids` current while a
    script adds the key that it created.
    """
    with (home.run / "endpoints.flock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        before = {} if replace else read(home)
        keys = {**before.get("keys", {}), **changes.get("keys", {})}
        write_private_json(home.endpoints_file, {**before, **changes, "keys": keys})


def remove(home: Home) -> None:
    """What a platform does last, so that nobody calls addresses that are gone."""
    home.endpoints_file.unlink(missing_ok=True)
