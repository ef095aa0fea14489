"""The key that seals bundles: made once, kept private, and found or complained about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from busbar_cli.main import run
from busbar_messaging.bundles.sealing import SigningKey


@pytest.fixture
def endpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A platform whose scheduler nobody reaches."""
    file = tmp_path / "endpoints.json"
    admin = {"scheduler": "http://127.0.0.1:9"}
    file.write_text(json.dumps({"admin": admin, "keys": {"operator": "x"}}))
    monkeypatch.setenv("BUSBAR_ENDPOINTS", str(file))
    monkeypatch.delenv("BUSBAR_SIGNING_KEY", raising=False)
    return file


def test_a_key_is_made_once_and_only_its_owner_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "operator.pem"
    made = run(["model", "key", str(file), "--json"])
    said = json.loads(capsys.readouterr().out)
    before = file.read_bytes()
    shown = run(["model", "key", str(file)])

    assert (made, shown) == (0, 0)
    assert capsys.readouterr().out == said["public_key"] + "\n"
    assert SigningKey.from_pem(before).public == said["public_key"]
    assert file.read_bytes() == before
    assert file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        ("no key", 2, "not a private key"),
        (None, 2, "cannot be read"),
        ("", 1, "set BUSBAR_SIGNING_KEY"),
    ],
    ids=["broken", "missing", "not-named"],
)
def test_without_a_key_nothing_is_pushed_and_it_says_what_to_do(
    endpoints: Path,
    *,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    status: int,
    said: str,
) -> None:
    file = endpoints.with_name("key.pem")
    if content != "":
        monkeypatch.setenv("BUSBAR_SIGNING_KEY", str(file))
    if content:
        file.write_text(content)

    assert run(["model", "push", str(endpoints.parent)]) == status
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_a_key_is_not_written_where_it_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["model", "key", str(tmp_path / "no" / "key.pem")]) == 2
    assert "cannot be written" in capsys.readouterr().err
