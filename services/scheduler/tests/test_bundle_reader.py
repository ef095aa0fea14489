"""Bundles: a good one, and every way in which one can be bad."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from busbar_errors import Rejected
from busbar_scheduler.adapters.bundle_reader import read_bundle
from busbar_scheduler.domain.manifest import Task

MANIFEST = """\
name: simple
version: "1"
task: tensor
slots: 8
memory_mb: 64
price_class: tensor
usage: {output_tokens: COUNT}
warmup:
  inputs: {INPUT0: {datatype: INT32, shape: [1, 2], data: [1, 2]}}
  expect: {OUTPUT0: {datatype: FP32, shape: [1, 2], data: [1.0, 2], tolerance: 0.1}}
"""
CONFIG = """\
name: "simple"
backend: "python"
max_batch_size: 8
input [{ name: "INPUT0", data_type: TYPE_INT32, dims: [2] }]
output [
  { name: "OUTPUT0", data_type: TYPE_FP32, dims: [-1] },
  { name: "COUNT", data_type: TYPE_UINT32, dims: [1] }
]
instance_group [{ kind: KIND_CPU, count: 1 }]
"""

Write = Callable[[tarfile.TarFile], None]


def file(name: str, content: str | bytes = b"x") -> Write:
    def write(tar: tarfile.TarFile) -> None:
        data = content.encode() if isinstance(content, str) else content
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))

    return write


def special(name: str, kind: bytes, link: str = "") -> Write:
    def write(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        tar.addfile(info)

    return write


def archive(path: Path, *members: Write, manifest: str = MANIFEST, config: str = CONFIG) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in (
            file("busbar.yaml", manifest),
            file("config.pbtxt", config),
            file("1/model.py"),
            *members,
        ):
            member(tar)
    return path


def changed(old: str, new: str, text: str = MANIFEST) -> str:
    assert old in text
    return text.replace(old, new)


def test_a_good_bundle_gives_its_manifest(tmp_path: Path) -> None:
    manifest = read_bundle(archive(tmp_path / "b.tar"))

    assert (manifest.name, manifest.version, manifest.task) == ("simple", "1", Task.TENSOR)
    assert (manifest.slots, manifest.memory_mib) == (8, 64)
    assert manifest.output_tokens_output == "COUNT"


DEMO_MODELS = Path(__file__).resolve().parents[3] / "deploy" / "demo" / "models"
# The others get their warm-up when their weights are built.
COMPLETE = [
    one for one in sorted(DEMO_MODELS.glob("*/busbar.yaml")) if "expect:" in one.read_text()
]


@pytest.mark.parametrize("demo", COMPLETE, ids=lambda path: path.parent.name)
def test_the_demo_bundles_are_good(demo: Path, tmp_path: Path) -> None:
    path = tmp_path / "b.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for part in sorted(demo.parent.rglob("*")):
            if part.is_file() and "__pycache__" not in part.parts:
                tar.add(part, str(part.relative_to(demo.parent)))

    assert read_bundle(path).name == demo.parent.name


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (file("../evil"), "no empty, . or .. parts"),
        (file("1/../../evil"), "no empty, . or .. parts"),
        (file("/etc/passwd"), "not a relative path"),
        (file("a\\b"), "not a relative path"),
        (file("./x"), "no empty, . or .. parts"),
        (file("1//x"), "no empty, . or .. parts"),
        (file("1/" + "x" * 201), "longer than 200"),
        (file("1/new\nline"), "printable ASCII"),
        (file("1/ünï"), "printable ASCII"),
        (file("1/model.py"), "is there twice"),
        (file("1"), "is there twice"),
        (file("busbar.yaml/x"), "lies under something that is a file"),
        (special("1/link", tarfile.SYMTYPE, "/etc/passwd"), "only files and folders"),
        (special("1/link", tarfile.LNKTYPE, "busbar.yaml"), "only files and folders"),
        (special("1/device", tarfile.CHRTYPE), "only files and folders"),
        (special("1/pipe", tarfile.FIFOTYPE), "only files and folders"),
    ],
)
def test_an_unsafe_member_is_refused(tmp_path: Path, member: Write, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        read_bundle(archive(tmp_path / "b.tar", member))


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ("", "the file"),
        ("- a list", "the file"),
        ("name: [", "not plain YAML"),
        ("a: &x 1\nb: *x", "aliases are not allowed"),
        (MANIFEST + "slots: 9\n", "repeated keys: slots"),
        (MANIFEST + "colour: red\n", "colour"),
        (changed("name: simple", "name: Simple/1"), "name"),
        (changed("name: simple", "name: other"), "'simple', busbar.yaml 'other'"),
        (changed("slots: 8", "slots: 0"), "slots"),
        (changed("slots: 8", "slots: true"), "slots"),
        (changed("slots: 8", "slots: 1.5"), "slots"),
        (changed("task: tensor", "task: dance"), "task"),
        (changed("task: tensor", "task: chat"), "chat_template is required"),
        (changed("task: tensor", "task: embed"), "needs an input 'text'"),
        (MANIFEST + "decoupled: true\n", "decoupled"),
        (MANIFEST + "instances: 2\n", "instances"),
        (MANIFEST + "chat_template: x\n", "for task chat only"),
        (
            changed("task: tensor", "task: chat") + "chat_template: '{% for x %}'\n",
            "chat_template",
        ),
        (changed("[1, 2], data: [1, 2]", "[1, 2], data: [1]"), "needs 2 elements, not 1"),
        (changed("data: [1, 2]", "data: [1, 2147483648]"), "is not INT32"),
        (changed("data: [1, 2]", "data: [1, true]"), "is not INT32"),
        (changed("data: [1.0, 2]", "data: [.nan, 2]"), "is not FP32"),
        (changed("tolerance: 0.1", "tolerance: -1"), "tolerance"),
        (changed("datatype: INT32", "datatype: INT64"), "config.pbtxt says INT32"),
        (changed("datatype: INT32", "datatype: FP16"), "datatype"),
        (
            changed("shape: [1, 2], data: [1, 2]", "shape: [2], data: [1, 2]"),
            r"config.pbtxt says \[-1, 2\]",
        ),
        (changed("INPUT0:", "INPUT9:"), "lacks the required input 'INPUT0'"),
        (changed("OUTPUT0:", "OUTPUT9:"), "'OUTPUT9', which is not an output"),
        (changed("output_tokens: COUNT", "output_tokens: NOPE"), "which is not an output"),
        (changed("output_tokens: COUNT", "output_tokens: OUTPUT0"), "FP32 and cannot count"),
    ],
)
def test_a_bad_manifest_is_refused(tmp_path: Path, manifest: str, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        read_bundle(archive(tmp_path / "b.tar", manifest=manifest))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("nonsense", "cannot be parsed"),
        (changed("max_batch_size: 8", "max_batch_size: -1", CONFIG), "max_batch_size is -1"),
        (changed('backend: "python"', "", CONFIG), "neither backend nor platform"),
        ('backend: "python"', "must declare its inputs and outputs"),
        (changed('"COUNT"', '"OUTPUT0"', CONFIG), "more than once: OUTPUT0"),
        ("\ufeff" + CONFIG, "cannot be parsed"),
    ],
)
def test_a_bad_triton_configuration_is_refused(tmp_path: Path, config: str, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        read_bundle(archive(tmp_path / "b.tar", config=config))


def test_an_incomplete_archive_is_refused(tmp_path: Path) -> None:
    for names, missing in (
        (["config.pbtxt", "1/model.py"], "busbar.yaml is missing"),
        (["busbar.yaml", "1/model.py"], "config.pbtxt is missing"),
        (["busbar.yaml", "config.pbtxt"], "there is no model"),
        (["busbar.yaml", "config.pbtxt", "v1/model.py"], "there is no model"),
    ):
        path = tmp_path / "b.tar"
        with tarfile.open(path, "w") as tar:
            for name in names:
                file(name)(tar)
        with pytest.raises(Rejected, match=missing):
            read_bundle(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"\0" * 10240,
        lambda data: b"not a tar" * 200,
        lambda data: data[:700],
        lambda data: data.rstrip(b"\0"),
        lambda data: data + b"tail".ljust(512, b"\0"),
        lambda data: data[:1024] + b"\xff" * 100 + data[1124:],
        lambda data: b"\x1f\x8b" + data,
    ],
)
def test_a_damaged_archive_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = archive(tmp_path / "b.tar")
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(Rejected):
        read_bundle(path)
