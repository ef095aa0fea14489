from __future__ import annotations

from datetime import timedelta

import pytest
from busbar_runtime.spec import RestartPolicy

POLICY = RestartPolicy(first_delay=timedelta(seconds=0.5), longest_delay=timedelta(seconds=15))


@pytest.mark.parametrize(
    ("failures", "delay_s"),
    [(1, 0.5), (2, 1), (3, 2), (4, 4), (5, 8), (6, 15), (7, 15), (100_000, 15)],
)
def test_the_delay_doubles_up_to_its_cap(failures: int, delay_s: float) -> None:
    assert POLICY.delay(failures) == timedelta(seconds=delay_s)
