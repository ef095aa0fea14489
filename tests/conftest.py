"""A running platform for the tests that need one: flows and faults share it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from busbar_runtime.platform import Platform
from harness.operator import Customer, Operator

NEED_IT = [Path(__file__).with_name(name) for name in ("flows", "faults")]
_RUNNING = pytest.StashKey[Platform]()


@pytest.fixture(scope="session")
def platform(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    """Everything, with the demo models deployed."""
    running = Platform(tmp_path_factory.mktemp("platform"), show=lambda text: print(text, end=""))  # noqa: T201
    running.launch()
    request.config.stash[_RUNNING] = running
    yield running
    running.shutdown()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """End it with the last test that needs it: the others would run beside it for minutes."""
    ran = yield
    on = nextitem is None or any(nextitem.path.is_relative_to(place) for place in NEED_IT)
    if not on and (running := item.config.stash.get(_RUNNING, None)):
        running.shutdown()
    return ran


@pytest.fixture
async def operator(platform: Platform) -> Operator:
    """The operator of that platform, which is whole."""
    found = Operator(platform.endpoints)
    await found.whole()
    return found


@pytest.fixture
async def customer(operator: Operator) -> Customer:
    """A fresh tenant with one key and some credit."""
    return await operator.customer()
