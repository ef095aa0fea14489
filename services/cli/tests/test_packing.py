"""Bundles are the same bytes wherever they are made."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from busbar_cli.failures import CommandError, Exit
from busbar_cli.packing import pack
from busbar_messaging.bundles.contents import CHUNK_BYTES_MAX, read_contents

MIB = 1024 * 1024
MANY = 1024 * MIB


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = tmp_path / "m"
    files = (
        ("busbar.yaml", 'name: m\nversion: "3"'),
        ("config.pbtxt", "x"),
        ("1/model.py", "pass"),
        ("1/empty", ""),
    )
    for name, text in files:
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

    assert pack(other, MANY).contents == pack(model, MANY).contents


def test_a_bundle_is_what_services_take_for_one(model: Path) -> None:
    packed = pack(model, MANY)
    contents = read_contents(packed.contents, 100)

    assert (contents.name, contents.version) == ("m", "3")
    assert [(one.path, one.size_bytes) for one in contents.files] == [
        ("1/empty", 0),
        ("1/model.py", 4),
        ("busbar.yaml", 20),
        ("config.pbtxt", 1),
    ]
    assert {place.read(one) for one, place in packed.chunks.items()} >= {b"pass", b"x"}


def test_a_changed_byte_changes_the_digest(model: Path) -> None:
    before = pack(model, MANY)
    (model / "1" / "model.py").write_text("pasS")

    assert pack(model, MANY).digest != before.digest


def test_a_large_file_is_cut_where_its_content_says(model: Path) -> None:
    weights = random.Random("weights").randbytes(12 * MIB)
    (model / "1" / "weights.bin").write_bytes(weights)
    before = pack(model, MANY)
    (model / "1" / "weights.bin").write_bytes(b"a header that grew" + weights)
    after = pack(model, MANY)
    cut = next(one for one in read_contents(after.contents, 2**30).files if "weights" in one.path)
    new = [place.size_bytes for one, place in after.chunks.items() if one not in before.chunks]

    read = b"".join(after.chunks[chunk.sha256].read(chunk.sha256) for chunk in cut.chunks)
    assert read == b"a header that grew" + weights
    assert len(cut.chunks) > 4
    assert max(chunk.size_bytes for chunk in cut.chunks) <= CHUNK_BYTES_MAX
    assert sum(new) < 6 * MIB


def test_a_file_that_changes_while_it_is_pushed_is_noticed(model: Path) -> None:
    packed = pack(model, MANY)
    (model / "1" / "model.py").write_text("pasS")
    sha256, place = next(
        (one, place) for one, place in packed.chunks.items() if place.path.name == "model.py"
    )

    with pytest.raises(CommandError, match="changed while it was being pushed"):
        place.read(sha256)


def test_what_is_too_large_is_refused_before_it_is_read(model: Path) -> None:
    weights = model / "1" / "weights.bin"
    weights.touch()
    os.truncate(weights, 2 * MANY)

    with pytest.raises(CommandError) as caught:
        pack(model, MANY)

    assert caught.value.exit_status is Exit.USAGE
    assert caught.value.message == (
        f"{2 * MANY + 25} bytes are more than the {MANY} that a bundle may have; "
        f"{weights} has {2 * MANY}"
    )


def test_what_tools_leave_behind_is_not_packed(model: Path) -> None:
    before = pack(model, MANY)
    for left in ("1/__pycache__/model.pyc", ".git/HEAD", "1/.DS_Store"):
        path = model / left
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")

    assert pack(model, MANY).contents == before.contents


def test_links_and_special_files_are_refused(model: Path) -> None:
    (model / "1" / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(CommandError, match="is a link"):
        pack(model, MANY)
    (model / "1" / "passwd").unlink()
    os.mkfifo(model / "1" / "pipe")

    with pytest.raises(CommandError, match="is no plain file"):
        pack(model, MANY)


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ("name: m", "has no version"),
        ("version: '1'", "has no name"),
        ("name: m\nversion: 1", "has no version, which is a string"),
        ("- x", "has no name"),
        ("name: [", "is not plain YAML"),
    ],
)
def test_a_manifest_that_does_not_say_what_it_is_is_refused(
    model: Path, manifest: str, reason: str
) -> None:
    (model / "busbar.yaml").write_text(manifest)

    with pytest.raises(CommandError, match=reason):
        pack(model, MANY)


def test_what_is_not_a_model_directory_is_refused(model: Path, tmp_path: Path) -> None:
    (model / "busbar.yaml").unlink()
    for directory, reason in ((model, "no busbar.yaml"), (tmp_path / "no", "not a directory")):
        with pytest.raises(CommandError, match=reason):
            pack(directory, MANY)
