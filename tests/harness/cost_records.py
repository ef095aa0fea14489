"""What billing has been told that work cost, and where answers came from."""

from __future__ import annotations

import asyncpg
from busbar_runtime.platform import Platform


async def measured(platform: Platform) -> list[asyncpg.Record]:
    """Every cost record that billing has."""
    return await _rows(platform, "SELECT * FROM work_measured")


async def answered_at(platform: Platform, node: str, *, since: float) -> list[float]:
    """When the node's charged answers ended, those after `since`; Unix seconds, in order."""
    rows = await _rows(platform, f"SELECT finished_at FROM usage_records WHERE node = '{node}'")
    times = sorted(row["finished_at"].timestamp() for row in rows)
    return [at for at in times if at > since]


def unmeasured(rows: list[asyncpg.Record], answered: set[str]) -> set[str]:
    """Those request ids that no record says the finished work of."""
    finished = {row["request_id"].hex for row in rows if row["finished"]}
    return {one for one in answered if bare(one) not in finished}


def gaps(rows: list[asyncpg.Record]) -> dict[tuple[str, str], list[int]]:
    """By node and run, the numbers that are missing below the highest there is."""
    numbers: dict[tuple[str, str], set[int]] = {}
    for row in rows:
        numbers.setdefault((row["node"], row["agent_run_id"]), set()).add(row["sequence"])
    absent = {run: sorted(set(range(1, max(had))) - had) for run, had in numbers.items()}
    return {run: lost for run, lost in absent.items() if lost}


def bare(request_id: str) -> str:
    """The id's 32 hexadecimal digits."""
    return request_id.removeprefix("req_").replace("-", "")


async def _rows(platform: Platform, query: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(platform.endpoints["postgres"])
    try:
        return await connection.fetch(query)
    finally:
        await connection.close()
