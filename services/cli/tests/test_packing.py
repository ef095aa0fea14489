"""Bundles are the same bytes wherever they are made."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from busbar_cli.failures import CommandError
from busbar_cli.packing import Packed, pack


def packed(directory: Path) -> tuple[Packed, bytes]:
    out = io.BytesIO()
    made = pack(directory, out)
    return made, out.getvalue()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = tmp_path / "m"
    for name, text in (("busbar.yaml", "name: m"), ("config.pbtxt", "x"), ("1/model.py", "pass")):
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return made


def test_times_owners_modes_and_order_do_not_shape_the_digest(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "n"
    shutil.copytree(model, other)
    (other / "config.pbtxt").unlink()
    (other / "config.pbtxt").write_text("x")
    (other / "1" / "model.py").chmod(0o755)
    os.utime(other / "1" / "model.py", (1, 1))

    assert packed(other) == packed(model)


def test_the_archive_holds_plain_files_in_order_and_its_digest_is_of_it(model: Path) -> None:
    made, content = packed(model)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        names = tar.getnames()

    assert names == ["1/model.py", "busbar.yaml", "config.pbtxt"]
    assert made.size_bytes == len(content)
    assert len(made.digest) == len("sha256:") + 64


def test_a_changed_byte_changes_the_digest(model: Path) -> None:
    before, _ = packed(model)
    (model / "1" / "model.py").write_text("pasS")

    assert packed(model)[0].digest != before.digest


def test_what_tools_leave_behind_is_not_packed(model: Path) -> None:
    before = packed(model)
    for left in ("1/__pycache__/model.pyc", ".git/HEAD", "1/.DS_Store"):
        path = model / left
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")

    assert packed(model) == before


def test_links_are_refused(model: Path) -> None:
    (model / "1" / "passwd").symlink_to("/etc/passwd")

    with pytest.raises(CommandError, match="is a link"):
        packed(model)


def test_what_is_not_a_model_directory_is_refused(model: Path, tmp_path: Path) -> None:
    (model / "busbar.yaml").unlink()
    for directory, reason in ((model, "no busbar.yaml"), (tmp_path / "no", "not a directory")):
        with pytest.raises(CommandError, match=reason):
            packed(directory)


def test_a_path_too_long_for_the_format_is_refused(model: Path) -> None:
    deep = model.joinpath(*["d" * 90] * 4)
    deep.mkdir(parents=True)
    (deep / "f").write_text("x")

    with pytest.raises(CommandError, match="cannot be packed"):
        packed(model)
