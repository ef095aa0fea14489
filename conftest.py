"""What holds for every property test."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# By the clock an example is slow when another process has the core, which says nothing of it.
settings.register_profile("busbar", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busbar")
