"""The commit table outlives the process."""

from __future__ import annotations

from pathlib import Path

import pytest
from busbar_errors import Unavailable
from busbar_gateway.adapters.commit_table import TENANT_BYTES_MAX, CommitTable
from uuid_utils import uuid7


def test_what_was_not_cleared_is_found_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "commits"
    table = CommitTable(path)
    kept, gone = uuid7().bytes, uuid7().bytes
    table.claim(kept, "tenant-ü")
    table.clear(table.claim(gone, "tenant"))
    table.close()

    again = CommitTable(path)

    assert [(slot.request_id, slot.tenant_id) for slot in again.left_over] == [(kept, "tenant-ü")]
    again.clear(again.left_over[0])
    again.close()
    assert CommitTable(path).left_over == []


def test_a_shorter_tenant_leaves_nothing_of_the_longer_one(tmp_path: Path) -> None:
    table = CommitTable(tmp_path / "commits")
    table.clear(table.claim(uuid7().bytes, "a-much-longer-tenant"))
    table.claim(uuid7().bytes, "b")
    table.close()

    assert [slot.tenant_id for slot in CommitTable(tmp_path / "commits").left_over] == ["b"]


def test_two_processes_cannot_share_a_table(tmp_path: Path) -> None:
    held = CommitTable(tmp_path / "commits")

    with pytest.raises(OSError, match="unavailable"):
        CommitTable(tmp_path / "commits")
    held.close()


def test_a_full_table_refuses_and_recovers(tmp_path: Path) -> None:
    table = CommitTable(tmp_path / "commits")
    slots = [table.claim(uuid7().bytes, "t") for _ in range(4096)]

    with pytest.raises(Unavailable):
        table.claim(uuid7().bytes, "t")
    table.clear(slots[7])
    table.claim(uuid7().bytes, "t" * TENANT_BYTES_MAX)
