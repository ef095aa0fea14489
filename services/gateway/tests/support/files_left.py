"""A process that may open few files more, or none."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_HEADROOM = 50
"""Lower numbers may be free, too."""
_STANDARD_STREAMS = 3


@contextmanager
def no_file_left() -> Iterator[None]:
    """This process may open none, whatever it closes meanwhile; nor may it duplicate any."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_STANDARD_STREAMS, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def files_left(count: int) -> Iterator[None]:
    """So many files more may this process open meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(each.name) for each in Path("/proc/self/fd").iterdir())
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + count + _HEADROOM, before[1]))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        taken = list[int]()
        while True:
            try:
                taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        for descriptor in taken[count:]:
            stack.callback(os.close, descriptor)
        for descriptor in taken[:count]:
            os.close(descriptor)
        yield
