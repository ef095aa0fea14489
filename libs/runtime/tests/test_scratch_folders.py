from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from busbar_runtime.scratch_folders import PREFIX, remove_stale_scratch


def made(folder: Path, name: str, age_s: float) -> Path:
    """A scratch folder of that age."""
    path = folder / f"{PREFIX}{name}"
    path.mkdir()
    made_at = time.time() - age_s
    os.utime(path, (made_at, made_at))
    return path


def test_only_empty_folders_that_no_living_triton_can_have_made_are_removed(
    tmp_path: Path,
) -> None:
    cat = shutil.which("cat")
    assert cat
    tritonserver = tmp_path / "tritonserver"
    tritonserver.symlink_to(cat)
    living = subprocess.Popen([tritonserver], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert living.stdin
    assert living.stdout
    try:
        living.stdin.write(b"\n")
        living.stdin.flush()
        assert living.stdout.readline()  # now it has its name
        started, stale, used = (
            made(tmp_path, name, age_s)
            for name, age_s in (("started", 0.0), ("stale", 3_600.0), ("used", 3_600.0))
        )
        (used / "environment").touch()
        os.utime(used, (0, 0))
        removed = remove_stale_scratch(tmp_path)
    finally:
        living.kill()
        living.wait()

    assert removed == [stale.name]
    assert (started.exists(), stale.exists(), used.exists()) == (True, False, True)
