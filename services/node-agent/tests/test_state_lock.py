"""Which run is known to have ended, by who gets the lock of its state directory."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from busbar_node_agent.adapters.state_lock import StateLock


def known_dead(directory: Path, run_id: str) -> str | None:
    """What a run that starts there hears, and notes."""
    with StateLock(directory) as lock:
        return lock.acquire(run_id)


def test_who_gets_the_lock_knows_that_the_run_before_has_ended(tmp_path: Path) -> None:
    with StateLock(tmp_path) as first:
        nobody = first.acquire("a-rather-long-first-run")
        locked = known_dead(tmp_path, "second")
    after = known_dead(tmp_path, "second")

    assert (nobody, locked) == ("", None)
    assert after == "a-rather-long-first-run"
    assert known_dead(tmp_path, "third") == "second"


def test_a_directory_that_was_copied_does_not_tell_that_the_run_in_it_has_ended(
    tmp_path: Path,
) -> None:
    with StateLock(tmp_path / "original") as original:
        original.acquire("lives-on")
        shutil.copytree(tmp_path / "original", tmp_path / "copy")
        first = known_dead(tmp_path / "copy", "copied")

    assert first == ""
    assert known_dead(tmp_path / "copy", "copied-again") == "copied"


def test_a_note_of_another_boot_does_not_tell_that_the_run_in_it_has_ended(tmp_path: Path) -> None:
    known_dead(tmp_path, "first")
    note, boot_id = tmp_path / "agent.run", Path("/proc/sys/kernel/random/boot_id").read_text()
    note.write_text(note.read_text().replace(boot_id.strip(), "f" * 8 + boot_id[8:].strip()))

    assert known_dead(tmp_path, "second") == ""


def test_a_disk_that_takes_nothing_ends_nobody_and_vouches_for_nobody(tmp_path: Path) -> None:
    full = os.memfd_create("full", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(full, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    (tmp_path / "agent.run").symlink_to(f"/proc/self/fd/{full}")
    heard = [known_dead(tmp_path, run) for run in ("first", "second")]
    os.close(full)

    assert heard == ["", ""]
