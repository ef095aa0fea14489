from __future__ import annotations

import mmap
import os
from uuid import uuid4

import pytest
from busbar_runtime.shared_memory import SHARED_MEMORY, remove_stale_segments


@pytest.mark.skipif(not os.access(SHARED_MEMORY, os.W_OK), reason="needs /dev/shm")
def test_only_segments_that_nobody_maps_any_more_are_removed() -> None:
    used, stale, new = (SHARED_MEMORY / f"busbar_triton_1_{uuid4()}" for _ in range(3))
    for path in (used, stale, new):
        path.write_bytes(b"x" * mmap.PAGESIZE)
    for path in (used, stale):
        os.utime(path, (0, 0))
    with used.open("r+b") as file, mmap.mmap(file.fileno(), 0):
        removed = remove_stale_segments()

    assert stale.name in removed
    assert (used.exists(), stale.exists(), new.exists()) == (True, False, True)

    used.unlink()
    new.unlink()
