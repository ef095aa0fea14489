"""The FOCUS export, judged by the FinOps Foundation's own validator."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from busbar_billing.adapters.documents.focus import render_focus
from busbar_runtime.triton import find_uv
from busbar_runtime.triton_python import pythons_here
from issued import ISSUED

LOCK = Path(__file__).resolve().parents[3] / "deploy" / "focus" / "validator.lock"
PYTHON = "3.12"
SOURCE_ONLY = ("focus-validator", "pandasql")
VERSION = "1.2"
INSTALL_LIMIT_S, RUN_LIMIT_S = 240, 120
WHAT_WE_HAVE = (
    "ACCOUNT_NAMING_SUPPORTED,PUBLIC_PRICE_LIST_SUPPORTED,USAGE_MEASUREMENT_SUPPORTED,"
    "UNIT_PRICING_SUPPORTED,RESOURCE_TYPE_ASSIGNMENT_SUPPORTED"
)
PASSED_MIN = 200
Json = dict[str, Any]


@pytest.fixture
def cache() -> Path:
    return Path(os.environ.get("BUSBAR_CACHE", LOCK.parents[2] / ".busbar" / "cache"))


@pytest.fixture
def validator(cache: Path) -> Path:
    """Its environment, made once for each lock file."""
    uv = find_uv(cache)
    python = next(pythons_here(uv, PYTHON), None)
    if python is None:
        pytest.skip(f"focus-validator needs Python {PYTHON}, which is not on this machine")
    home = cache / f"focus-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:10]}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "focus.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (home / "complete").exists():
            install(uv, python, home)
    return home


def install(uv: str, python: str, home: Path) -> None:
    into = ["--python", str(home / "bin" / "python"), "--require-hashes", "--no-deps"]
    binary = ["--only-binary", ":all:", *(f"--no-binary={name}" for name in SOURCE_ONLY)]
    locks = ["--build-constraints", str(LOCK.with_name("build.lock")), "-r", str(LOCK)]
    for arguments in (
        ["venv", "--quiet", "--no-project", "--clear", "--python", python, str(home)],
        ["pip", "install", "--quiet", *binary, *into, *locks],
    ):
        subprocess.run([uv, *arguments], check=True, timeout=INSTALL_LIMIT_S)
    (home / "complete").touch()


def model_rules(package: Path) -> dict[str, Json]:
    """The rules by id, as the validator has them."""
    [file] = (package / "focus_validator" / "rules").glob(f"model-{VERSION}.*.json")
    rules: dict[str, Json] = json.loads(file.read_text())["ModelRules"]
    return rules


@pytest.mark.timeout(INSTALL_LIMIT_S + RUN_LIMIT_S)
def test_the_validator_finds_nothing_wrong(validator: Path, tmp_path: Path) -> None:
    export = tmp_path / "export.csv"
    export.write_bytes(render_focus(ISSUED))
    [package] = (validator / "lib").glob("python*/site-packages")
    said = subprocess.run(
        [
            *(validator / "bin" / "focus-validator", "--data-file", export, "--block-download"),
            *("--validate-version", VERSION, "--applicability-criteria", WHAT_WE_HAVE),
        ],
        cwd=package,  # it reads its own tables relative to here
        capture_output=True,
        text=True,
        timeout=RUN_LIMIT_S,
        check=False,
    ).stdout
    passed = set(re.findall(r"^\S+ (\S+): PASS", said, re.MULTILINE))
    failed = set(re.findall(r"^\S+ (\S+): FAIL", said, re.MULTILINE))

    assert len(passed) > PASSED_MIN, said[-3000:]
    assert failed <= alternatives(model_rules(package), passed), said[-6000:]


def alternatives(rules: dict[str, Json], passed: set[str]) -> set[str]:
    """Rules of which one or another must hold, where one does: the validator counts the others as
    failed, such as "InvoiceId MUST be null" beside "InvoiceId MUST NOT be null"."""
    found: set[str] = set()
    for rule_id, rule in rules.items():
        requirement = rule["ValidationCriteria"]["Requirement"]
        if requirement.get("CheckFunction") == "OR" and rule_id in passed:
            found |= {item.get("ModelRuleId", "") for item in requirement["Items"]}
    return found
