"""The command line, and the auditor's word, on a running platform."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from busbar_messaging.connection import BusSettings, connect
from busbar_messaging.topology import BILLING_USAGE
from busbar_runtime.platform import Platform
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError
from pydantic import SecretStr

from harness.polling import eventually

POSTED_S = 30.0
AUDITED_S = 60.0


async def assert_audit_clean(platform: Platform, *, within_s: float = POSTED_S) -> dict[str, Any]:
    """Wait until all usage is posted, run `busbar audit --json` and return what it said.

    Raises AssertionError that names each breach.
    """
    await until_posted(platform, within_s=within_s)
    status, report, complaints = await busbar_audit(platform)
    breaches = [
        f"{check['check']}: {one['subject']} {one['detail']}"
        for check in report.get("checks", [])
        for one in check["breaches"]
    ]
    assert breaches == [], "\n".join(["the books are not right:", *breaches])
    assert status == 0, f"busbar audit ended with {status}: {complaints}"
    assert report["clean"] is True
    return report


async def busbar_audit(platform: Platform) -> tuple[int, dict[str, Any], str]:
    """Run `busbar audit --json`: its exit status, its answer, what it complained of."""
    return await busbar(platform, "audit")


async def busbar(platform: Platform, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run `busbar ... --json`: its exit status, its answer, what it complained of."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "busbar_cli",
        *arguments,
        "--json",
        env={**os.environ, "BUSBAR_ENDPOINTS": str(platform.home.endpoints_file)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complaints = await asyncio.wait_for(process.communicate(), AUDITED_S)
    return process.returncode or 0, json.loads(said or b"{}"), complaints.decode()


async def until_posted(platform: Platform, *, within_s: float = POSTED_S) -> None:
    """Wait until billing has acknowledged every usage record that is on the bus."""
    found = platform.endpoints
    client = await connect(
        BusSettings(
            nats_url=found["nats"],
            nats_user="provisioner",
            nats_password=SecretStr(found["nats_credentials"]["provisioner"]),
        ),
        "audit",
    )
    jetstream = client.jetstream(timeout=2)

    async def behind() -> int | str:
        try:
            info = await jetstream.consumer_info(BILLING_USAGE.stream, BILLING_USAGE.durable)
        except (NatsError, JetStreamError, TimeoutError, OSError) as error:
            return repr(error)
        return (info.num_pending or 0) + (info.num_ack_pending or 0)

    try:
        await eventually(
            behind, within_s=within_s, what="all usage is posted", until=lambda left: left == 0
        )
    finally:
        await client.close()
