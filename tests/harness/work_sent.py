"""When work was last sent to a region, as its stream on the bus says."""

from __future__ import annotations

import json
from datetime import datetime

from busbar_messaging.topology import work_stream
from busbar_runtime.platform import Platform

from harness.hub import as_provisioner


async def last_sent(platform: Platform, region: str) -> float:
    """Unix seconds at which the newest work of the region was stored, taken since or not."""
    async with as_provisioner(platform) as client:
        asked = f"$JS.API.STREAM.INFO.{work_stream(region).name}"
        answer = json.loads((await client.request(asked, timeout=5)).data)
    return datetime.fromisoformat(answer["state"]["last_ts"]).timestamp()
