"""What services load with the bus."""

from __future__ import annotations

import subprocess
import sys

_LOADED = """
import sys
import busbar_messaging.connection
assert "nats.aio.client" in sys.modules
print([name for name in sys.modules if name.startswith("aiohttp")])
import aiohttp
print(aiohttp.__name__)
"""


def test_the_bus_loads_no_websockets_and_leaves_them_to_others() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOADED], capture_output=True, text=True, check=True, timeout=30
    )

    assert done.stdout.split() == ["[]", "aiohttp"]
