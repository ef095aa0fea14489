"""The ops listener, over a real socket."""

from __future__ import annotations

from http import HTTPStatus

import httpx
import pytest
from busbar_observability.ops import ops_application, serve_http


async def test_readiness_says_what_it_waits_for() -> None:
    waiting = ["no bus"]
    async with (
        serve_http(ops_application(lambda: waiting), "127.0.0.1", 0) as port,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, verify=False
        ) as client,
    ):
        before = await client.get("/readyz")
        waiting.clear()
        after = await client.get("/readyz")
        alive = await client.get("/healthz")
        metrics = await client.get("/metrics")

    assert before.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    assert before.json() == {"status": "waiting", "reasons": ["no bus"]}
    assert (after.status_code, alive.status_code) == (HTTPStatus.OK, HTTPStatus.OK)
    assert "process_cpu_seconds_total" in metrics.text


async def test_a_taken_port_is_an_error_and_not_a_silence() -> None:
    application = ops_application(list)
    async with serve_http(application, "127.0.0.1", 0) as port:
        with pytest.raises(OSError, match="in use"):
            async with serve_http(application, "127.0.0.1", port):
                raise AssertionError("both are served")
