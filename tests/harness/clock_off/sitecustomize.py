"""Python imports this at start when its folder is on PYTHONPATH: a clock that is off.

For tests only. The process's clock is moved by TEST_CLOCK_OFF_S seconds before
anything of the product is imported; the system's and everybody else's stay.
"""

import os
import time

_OFF_S = int(os.environ["TEST_CLOCK_OFF_S"])
_true_ns = time.time_ns


def _time_ns() -> int:
    return _true_ns() + _OFF_S * 1_000_000_000


def _time() -> float:
    return _time_ns() / 1_000_000_000


time.time_ns, time.time = _time_ns, _time
