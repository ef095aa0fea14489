"""What the scheduler last told each node, as it stands on the bus."""

from __future__ import annotations

from busbar_messaging.topology import PLACEMENTS
from busbar_runtime.platform import Platform

from harness.hub import as_provisioner


async def placements(platform: Platform) -> dict[str, tuple[int, bytes]]:
    """By node, at which revision of the bucket it was told what it is told."""
    async with as_provisioner(platform) as client:
        bucket = await client.jetstream(timeout=5).key_value(PLACEMENTS.name)
        entries = [await bucket.get(key) for key in await bucket.keys()]
    return {entry.key: (entry.revision or 0, entry.value or b"") for entry in entries}
