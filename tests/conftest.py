"""A running platform for the tests that need one: flows share one, faults have their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from busbar_runtime.platform import Platform
from harness.operator import Customer, Operator


@pytest.fixture(scope="package")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Everything, with the demo models deployed."""
    running = Platform(tmp_path_factory.mktemp("platform"), show=lambda text: print(text, end=""))  # noqa: T201
    running.launch()
    yield running
    running.shutdown()


@pytest.fixture
def operator(platform: Platform) -> Operator:
    """The operator of that platform."""
    return Operator(platform.endpoints)


@pytest.fixture
async def customer(operator: Operator) -> Customer:
    """A fresh tenant with one key and some credit."""
    return await operator.customer()
