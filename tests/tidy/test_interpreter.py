"""Which Python `./just` makes .venv with."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "just"


@pytest.fixture(scope="module")
def just() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("just_script", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def build(folder: Path, name: str, *, quick: bool) -> str:
    """An interpreter that says of itself whether it is quick."""
    made = folder / name
    made.write_text(f"#!/bin/sh\nexit {0 if quick else 1}\n")
    made.chmod(0o755)
    return str(made)


@pytest.mark.parametrize(
    ("here_is_quick", "twin_is_quick", "chosen"),
    [(False, True, "twin"), (True, True, "here"), (False, False, "here"), (True, False, "here")],
)
def test_a_slow_build_gives_way_to_a_quick_one_of_the_same_version(
    just: ModuleType, tmp_path: Path, *, here_is_quick: bool, twin_is_quick: bool, chosen: str
) -> None:
    here = build(tmp_path, "here", quick=here_is_quick)
    twin = build(tmp_path, "twin", quick=twin_is_quick)

    assert Path(just.quicker_of(here, twin)).name == chosen


def test_an_interpreter_that_is_not_there_is_not_chosen(just: ModuleType, tmp_path: Path) -> None:
    here = build(tmp_path, "here", quick=False)

    assert just.quicker_of(here, str(tmp_path / "none")) == here


def test_a_shared_library_is_quick_only_where_it_was_optimised(just: ModuleType) -> None:
    shared = "libpython" in Path("/proc/self/maps").read_text()
    optimised = "--enable-optimizations" in str(sysconfig.get_config_var("CONFIG_ARGS"))

    assert just.is_quick(sys.executable) is (optimised or not shared)
