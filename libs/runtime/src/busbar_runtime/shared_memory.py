"""Removes the shared memory that killed Tritons left behind.

A Triton that ends in order removes its own; after kill -9 the segments stay until somebody does.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - not a file of ours, the kernel's place for them
OURS = re.compile(rf"{SHARED_MEMORY}/(busbar_triton_\S+)")
# Between making a segment and mapping it a process shows no sign of using it.
MIN_AGE_S = 10.0


def remove_stale_segments() -> list[str]:
    """Unlink the segments of our Tritons that no living process maps; their names."""
    old = [path for path in SHARED_MEMORY.glob("busbar_triton_*") if _is_old(path)]
    if not old:
        return []
    mapped = _mapped()
    removed = [path for path in old if path.name not in mapped]
    for path in removed:
        with suppress(OSError):  # somebody else's, or gone meanwhile
            path.unlink()
    return [path.name for path in removed]


def _is_old(path: Path) -> bool:
    with suppress(OSError):
        return time.time() - path.stat().st_mtime > MIN_AGE_S
    return False


def _mapped() -> set[str]:
    found: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            found.update(OURS.findall(maps.read_text(errors="replace")))
    return found
