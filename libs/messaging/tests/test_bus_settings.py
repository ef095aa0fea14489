"""Who a service is on the bus, as its environment says."""

from __future__ import annotations

from pathlib import Path

import pytest
from busbar_errors import Unavailable
from busbar_messaging.connection import BusSettings, connect
from pydantic import ValidationError


def settings(monkeypatch: pytest.MonkeyPatch, **said: str) -> BusSettings:
    given = {"NATS_URL": "nats://127.0.0.1:4222", "NATS_USER": "agent", **said}
    for name, value in given.items():
        monkeypatch.setenv(f"BUSBAR_{name}", value)
    return BusSettings()  # pyright: ignore[reportCallIssue]


def test_the_password_is_given_or_stands_in_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "node.creds"
    file.write_text("from the file\n")
    given = settings(monkeypatch, NATS_PASSWORD="given")
    monkeypatch.delenv("BUSBAR_NATS_PASSWORD")
    from_file = settings(monkeypatch, NATS_PASSWORD_FILE=str(file))

    assert given.password == "given"
    assert from_file.password == "from the file"


@pytest.mark.parametrize("written", [None, b"\xff\xfe"], ids=["missing", "no-text"])
async def test_a_password_file_that_cannot_be_read_is_named_as_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, written: bytes | None
) -> None:
    file = tmp_path / "node.creds"
    if written is not None:
        file.write_bytes(written)
    told = settings(monkeypatch, NATS_PASSWORD_FILE=str(file))

    with pytest.raises(Unavailable) as unavailable:
        await connect(told, "test")

    assert f"from {file} (BUSBAR_NATS_PASSWORD_FILE)" in unavailable.value.reason


@pytest.mark.parametrize("said", [{}, {"NATS_PASSWORD": "x", "NATS_PASSWORD_FILE": "/x"}])
def test_neither_and_both_are_refused(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, str]
) -> None:
    with pytest.raises(ValidationError, match="either nats_password or nats_password_file"):
        settings(monkeypatch, **said)
