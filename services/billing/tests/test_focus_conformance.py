"""What the service exports as FOCUS, judged by the FinOps Foundation's own validator."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import re
import subprocess
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from billing_parts import Gateway, Service
from busbar_billing.adapters.documents.focus import render_focus
from busbar_runtime.triton import find_uv
from busbar_runtime.triton_python import pythons_here
from issued import ISSUED
from past_books import Books, at

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
        missing = f"focus-validator needs Python {PYTHON}, which is not on this machine"
        assert "BUSBAR_CI" not in os.environ, f"CI proves it: {missing}"
        pytest.skip(missing)
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


async def exported(billing: Service, gateway: Gateway, books: Books) -> list[bytes]:
    """Two months of a tenant and a credit note, as billing serves them: usage that it posted, some
    of it after its month was closed, and what else a statement shows."""
    await books.move("top_up", 10**9, at(8, 15), "wire 7", against="payments_clearing")
    await books.move("promotional_credit", 10**6, at(8, 16), "welcome")
    await books.move("refund", 12_000, at(8, 23), '=slow, "very"')

    async def used(day: int, **amounts: Any) -> None:
        admitted_ns = round(at(8, day).timestamp()) * 10**9
        await gateway.publish(
            gateway.record(books.tenant_id, admitted_unix_ns=admitted_ns, **amounts)
        )

    async def close(month: str) -> str:
        statements = f"/tenants/{books.tenant_id}/statements"
        return (await billing.json("POST", statements, json={"month": month}))["number"]

    await used(20, output_tokens=77)
    tensors = {"input_tokens": 0, "request_bytes": 1_234_567, "compute_us": 890_123}
    await used(21, deployment="simple", price_class="tensor-small", **tensors)
    august = await close("2026-08")
    await used(31)
    september = await close("2026-09")
    body = {"amount_nanos": 5_000, "reason": "slow answers", "reference": "note 1"}
    note = await billing.json("POST", f"/statements/{august}/credit-notes", json=body)
    served: list[bytes] = []
    for number in (august, september, note["number"]):
        path = f"/statements/{number}/document"
        answer = await billing.call("GET", path, params={"format": "focus"})
        assert answer.status_code == HTTPStatus.OK, answer.text
        served.append(answer.content)
    return served


@pytest.mark.timeout(INSTALL_LIMIT_S + RUN_LIMIT_S)
async def test_the_validator_finds_nothing_wrong(
    validator: Path, tmp_path: Path, billing: Service, gateway: Gateway, books: Books
) -> None:
    exports = [*await exported(billing, gateway, books), render_focus(ISSUED)]
    export = tmp_path / "export.csv"
    export.write_bytes(in_one_table(exports))
    [package] = (validator / "lib").glob("python*/site-packages")
    said = await asyncio.to_thread(judge, validator, package, export)
    passed = set(re.findall(r"^\S+ (\S+): PASS", said, re.MULTILINE))
    failed = set(re.findall(r"^\S+ (\S+): FAIL", said, re.MULTILINE))

    assert len(passed) > PASSED_MIN, said[-3000:]
    assert failed <= alternatives(model_rules(package), passed), said[-6000:]


def in_one_table(exports: list[bytes]) -> bytes:
    """As who keeps all of them has them."""
    tables = [one.splitlines(keepends=True) for one in exports]
    assert len({header for header, *_ in tables}) == 1
    assert [bool(rows) for _, *rows in tables] == [True, True, False, True]  # a note bills nothing
    return b"".join([tables[0][0], *(row for _, *rows in tables for row in rows)])


def judge(validator: Path, package: Path, export: Path) -> str:
    """What the validator says."""
    return subprocess.run(
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


def alternatives(rules: dict[str, Json], passed: set[str]) -> set[str]:
    """Rules of which one or another must hold, where one does: the validator counts the others as
    failed, such as "InvoiceId MUST be null" beside "InvoiceId MUST NOT be null"."""
    found: set[str] = set()
    for rule_id, rule in rules.items():
        requirement = rule["ValidationCriteria"]["Requirement"]
        if requirement.get("CheckFunction") == "OR" and rule_id in passed:
            found |= {item.get("ModelRuleId", "") for item in requirement["Items"]}
    return found
