"""What a replica brings in, what its power costs, and what it costs to move one.

Everything is in nanos (1e-9 of the currency) an hour, so that a plan is weighed by one
number: served revenue - energy - moving, each replica taken to stay for an hour.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from busbar_scheduler.domain.fleet import Demand, Deployment, Site

Nanos = TypeVar("Nanos", int, npt.NDArray[np.int64])

_HOUR_S = 3_600
_LOAD_S = 5
"""Starting a model, whatever its size."""
_LOAD_S_PER_GIB = 2
_FETCH_S_PER_GIB = 8
"""One gigabit a second: what a rural link gives."""
_HYSTERESIS = 10
"""A replica is moved for its power only when that saves more than one part in this many."""


def energy_nanos_per_h(deployment: Deployment, site: Site) -> int:
    """What the power of one replica costs at a site."""
    return deployment.manifest.power_w * site.energy_nanos_per_kwh // 1_000


def loading_s(deployment: Deployment, *, cached: bool) -> int:
    """How long a new replica is of no use; shorter where the weights are on disk already."""
    per_gib = _LOAD_S_PER_GIB + (0 if cached else _FETCH_S_PER_GIB)
    return _LOAD_S + deployment.manifest.memory_mib * per_gib // 1_024


def moving_nanos(energy_nanos: Nanos, busy_nanos: int, seconds: Nanos) -> Nanos:
    """What is lost while a replica loads: power, and what it would have earned."""
    return (energy_nanos + busy_nanos) * seconds // _HOUR_S


def staying_nanos(energy_nanos: Nanos) -> Nanos:
    """What staying is worth by itself, so that small differences in price move nothing."""
    return energy_nanos // _HYSTERESIS


def busy_nanos_per_h(deployment: Deployment, demand: Demand | None) -> int:
    """What one replica brings in when it is busy all the time."""
    per_h = demand.requests_per_replica_h if demand else 0
    return deployment.value_nanos_per_request * per_h


def revenue_nanos_per_h(deployment: Deployment, demand: Demand | None, replicas: int) -> int:
    """What so many replicas bring in, an hour: they serve what is asked or what they can.

    Replicas beyond those that are wanted are spares, which wait for the others to fail.
    """
    if demand is None:
        return 0
    serving = min(replicas, max(demand.replicas, deployment.replicas))
    served = min(demand.requests_per_h, demand.requests_per_replica_h * serving)
    return deployment.value_nanos_per_request * served


def is_priced(deployment: Deployment, demand: Demand | None) -> bool:
    """Whether more replicas can be weighed against their cost; otherwise they are just wanted."""
    return bool(busy_nanos_per_h(deployment, demand))
