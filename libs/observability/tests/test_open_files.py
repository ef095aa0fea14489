"""Listeners of one process, and the files that it may have open."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

RAISED = """
import resource
from busbar_observability.open_files import make_room
print(make_room(3), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("hard", "connections", "files"), [(4_096, 512, 1_792), (1_024, 256, 1_024), (256, 16, 256)]
)
def test_three_listeners_leave_a_process_files_of_its_own(
    hard: int, connections: int, files: int
) -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1_024), hard))

    done = subprocess.run(
        [sys.executable, "-c", RAISED], preexec_fn=few, capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines()[-1].split() == [str(connections), str(files)]
