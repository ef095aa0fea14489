"""What a bundle may consist of, and every way in which it may not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from busbar_contracts.scheduler.v1.bundle_pb2 import BundleChunk, BundleContents, BundledFile
from busbar_errors import Rejected
from busbar_messaging.bundles.contents import (
    CHUNK_BYTES_MAX,
    CONTENTS_BYTES_MAX,
    FILES_MAX,
    hex_of,
    read_contents,
)

BYTES_MAX = 1_000


def file(path: str, size_bytes: int = 3) -> BundledFile:
    chunk = BundleChunk(sha256=b"x" * 32, size_bytes=size_bytes)
    return BundledFile(path=path, size_bytes=size_bytes, chunks=[chunk])


def contents(*more: BundledFile, without: str | None = None) -> BundleContents:
    files = [file("1/model.onnx"), file("busbar.yaml"), file("config.pbtxt"), *more]
    kept = [one for one in files if one.path != without]
    return BundleContents(name="m", version="1", files=sorted(kept, key=lambda one: one.path))


def read(made: BundleContents) -> BundleContents:
    return read_contents(made.SerializeToString(), BYTES_MAX)


def test_a_good_bundle_is_read_as_it_was_written() -> None:
    made = contents(BundledFile(path="1/empty"), file("2/model.onnx"))

    assert read(made) == made


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../evil", "no empty, . or .. parts"),
        ("1/../../evil", "no empty, . or .. parts"),
        ("./x", "no empty, . or .. parts"),
        ("1//x", "no empty, . or .. parts"),
        ("1/x/", "no empty, . or .. parts"),
        ("/etc/passwd", "not a relative path"),
        ("a\\b", "not a relative path"),
        ("", "not a relative path"),
        ("1/" + "x" * 201, "longer than 200"),
        ("/".join("x" * 17), "deeper than 16"),
        ("1/new\nline", "printable ASCII"),
        ("1/nul\0", "printable ASCII"),
        ("1/ünï", "printable ASCII"),
        ("1/model.onnx", "is there twice"),
        ("1", "is there twice|lies under"),
        ("busbar.yaml/x", "lies under something that is a file"),
    ],
)
def test_a_path_that_could_do_harm_is_refused(path: str, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        read(contents(file(path)))


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (BundledFile(path="x", size_bytes=1), "has 1 bytes, its chunks 0"),
        (BundledFile(path="x", size_bytes=1, chunks=[BundleChunk(size_bytes=1)]), "not a SHA-256"),
        (file("x", 0), "empty or larger"),
        (file("x", CHUNK_BYTES_MAX + 1), "empty or larger"),
        (file("x", BYTES_MAX), f"more than the {BYTES_MAX}"),
    ],
)
def test_sizes_that_cannot_be_are_refused(made: BundledFile, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        read(contents(made))


@pytest.mark.parametrize(
    ("without", "reason"),
    [
        ("busbar.yaml", "busbar.yaml is missing"),
        ("config.pbtxt", "config.pbtxt is missing"),
        ("1/model.onnx", "there is no model"),
    ],
)
def test_what_a_model_needs_must_be_there(without: str, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        read(contents(without=without))


@pytest.mark.parametrize("version", ["v1", "0", "01", "¹", "config"])
def test_a_folder_that_is_no_version_holds_no_model(version: str) -> None:
    made = contents(without="1/model.onnx")
    made.files.append(file(f"{version}/model.onnx"))
    made.files.sort(key=lambda one: one.path)

    with pytest.raises(Rejected):
        read(made)


def changed(change: Callable[[BundleContents], None]) -> BundleContents:
    made = contents()
    change(made)
    return made


def unsort(made: BundleContents) -> None:
    made.files.reverse()


def crowd(made: BundleContents) -> None:
    made.files.extend(BundledFile(path=f"x{at:05}") for at in range(FILES_MAX))


def rename(made: BundleContents) -> None:
    made.name = "../m"


def unversion(made: BundleContents) -> None:
    made.version = ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (unsort, "not in the order"),
        (crowd, f"more than the {FILES_MAX}"),
        (rename, "is not a bundle's name"),
        (unversion, "1 to 64 characters"),
    ],
)
def test_a_malformed_list_is_refused(change: Callable[[BundleContents], None], reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        read(changed(change))


@pytest.mark.parametrize(
    "serialized",
    [b"\xff\xff", b"\x0a", bytes(CONTENTS_BYTES_MAX + 1)],
    ids=["garbage", "cut", "huge"],
)
def test_what_is_no_list_is_refused(serialized: bytes) -> None:
    with pytest.raises(Rejected):
        read_contents(serialized, BYTES_MAX)


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "md5:" + "0" * 64, "sha256:" + "G" * 64, "sha256:../" + "0" * 61]
)
def test_what_is_not_a_digest_is_refused(digest: str) -> None:
    with pytest.raises(Rejected):
        hex_of(digest)
