"""The bus of Busbar: what exists on it (`topology`) and how services use it."""

from __future__ import annotations

import importlib
import sys


def _load_nats_without_websockets() -> None:
    """nats-py loads aiohttp wherever it finds it, for WebSockets, which Busbar never speaks.

    A service's image does not have it. A developer's environment does, for other packages, and
    there it was 8 MiB in each of five services.
    """
    if "nats" in sys.modules or "aiohttp" in sys.modules:
        return
    sys.modules["aiohttp"] = None  # pyright: ignore[reportArgumentType] - how import says "not there"
    try:
        importlib.import_module("nats.aio.transport")
    finally:
        del sys.modules["aiohttp"]


_load_nats_without_websockets()
