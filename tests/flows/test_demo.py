"""What `./just demo` runs, against the session's platform."""

from __future__ import annotations

import asyncio
import os
import re
import sys

from busbar_runtime.home import REPO
from busbar_runtime.platform import Platform
from harness.operator import Operator

ENDS_WITHIN_S = 120
REQUESTS = ("embeddings", "chat", "tensors, gRPC", "tensors, HTTP")


async def test_the_demo_shows_answers_latency_cost_ledger_lines_and_where_the_traces_are(
    platform: Platform,
    operator: Operator,  # waits until the platform is whole
) -> None:
    before = await operator.balance("demo")
    demo = await asyncio.create_subprocess_exec(
        sys.executable,
        str(REPO / "deploy" / "demo" / "demo.py"),
        env={**os.environ, "BUSBAR_HOME": str(platform.home.root)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said_bytes, _ = await asyncio.wait_for(demo.communicate(), ENDS_WITHIN_S)
    finally:
        if demo.returncode is None:
            demo.kill()
    said = said_bytes.decode()
    spent = before - await operator.balance("demo")

    assert demo.returncode == 0, said
    parts = said.split("What it cost")
    assert "cosine similarity" in parts[0]
    assert len(re.findall(r"^(sum|difference) +\[", parts[0], re.MULTILINE)) == 4
    rows = {name: re.findall(rf"^{name} .*$", parts[1], re.MULTILINE) for name in REQUESTS}
    for cost, ledger, trace in rows.values():
        assert re.search(r" [0-9.]+ ms .* \$0\.0[0-9]+ +req_[0-9a-f]{32}$", cost), cost
        assert re.search(r" charge +[0-9a-f-]{36} +tenant_held of demo +-\$0\.0[0-9]+ *$", ledger)
        assert f"{platform.endpoints['console']}/traces/" in trace
    assert "ledger post" in parts[1]
    assert spent > 0
    assert f"- ${spent / 1e9:.12f}".rstrip("0") in said
