"""Bundles: a good one, and every way in which one can be bad."""

from __future__ import annotations

from pathlib import Path

import pytest
from busbar_errors import Rejected
from busbar_messaging.bundles.contents import read_contents
from busbar_scheduler.adapters.bundle_reader import Inspected, inspect
from busbar_scheduler.domain.manifest import Task
from harness.bundles import Made, files_of, make

MANIFEST = """\
name: simple
version: "1"
task: tensor
slots: 8
memory_mb: 64
price_class: tensor
usage: {output_tokens: COUNT, input_tokens: COUNT, cached_tokens: COUNT}
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

ONNX_MANIFEST = MANIFEST.replace("name: simple", "name: data")
ONNX_CONFIG = CONFIG.replace('"simple"', '"data"').replace('"python"', '"onnxruntime"')
BYTES_MAX = 2**32


def made(manifest: str = MANIFEST, config: str = CONFIG, **more: bytes) -> Made:
    files = {"busbar.yaml": manifest.encode(), "config.pbtxt": config.encode()}
    return make({**files, "1/model.onnx": b"\x08\x09", **more})


async def read(bundle: Made) -> Inspected:
    async def chunk(sha256: bytes) -> bytes:
        return bundle.chunks[sha256]

    return await inspect(read_contents(bundle.contents, BYTES_MAX), chunk)


def changed(old: str, new: str, text: str = MANIFEST) -> str:
    assert old in text
    return text.replace(old, new)


async def test_a_good_bundle_gives_its_manifest() -> None:
    inspected = await read(made())
    manifest = inspected.manifest

    assert (manifest.name, manifest.version, manifest.task) == ("simple", "1", Task.TENSOR)
    assert (manifest.slots, manifest.memory_mib) == (8, 64)
    assert manifest.output_tokens_output == manifest.cached_tokens_output == "COUNT"
    assert "backend 'python'" in inspected.code


DEMO_MODELS = Path(__file__).resolve().parents[3] / "deploy" / "demo" / "models"
# The others get their warm-up when their weights are built.
COMPLETE = [
    one for one in sorted(DEMO_MODELS.glob("*/busbar.yaml")) if "expect:" in one.read_text()
]


@pytest.mark.parametrize("demo", COMPLETE, ids=lambda path: path.parent.name)
async def test_the_demo_bundles_are_good(demo: Path) -> None:
    inspected = await read(make(files_of(demo.parent)))

    assert inspected.manifest.name == demo.parent.name


async def test_a_bundle_of_data_alone_needs_no_approval() -> None:
    assert (await read(made(ONNX_MANIFEST, ONNX_CONFIG))).code == ""


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"1/weights.bin": b"\x80\x04\x95"}, "1/weights.bin is a pickle"),
        ({"1/helper.py": b""}, "1/helper.py is not known to be data"),
        ({"libtriton_onnxruntime.so": b"\x7fELF"}, "is a library"),
    ],
)
async def test_code_among_the_data_is_found(more: dict[str, bytes], reason: str) -> None:
    assert reason in (await read(made(ONNX_MANIFEST, ONNX_CONFIG, **more))).code


async def test_a_library_that_the_configuration_loads_is_found() -> None:
    config = ONNX_CONFIG + 'model_operations { op_library_filename: "/tmp/lib.so" }'

    assert "/tmp/lib.so" in (await read(made(ONNX_MANIFEST, config))).code


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ('runtime: "libtriton_mine.so"', "'libtriton_mine.so' loaded"),
        ('model_repository_agents { agents { name: "checksum" } }', "'checksum' loaded"),
        ('parameters { key: "log" value { string_value: "/var/log/x" } }', "'/var/log/x' loaded"),
        ('parameters { key: "dir" value { string_value: ".." } }', "'..' loaded"),
        (
            (
                "optimization { execution_accelerators { gpu_execution_accelerator {"
                " name: 'tensorrt' parameters { key: 'trt_cache' value: '/srv/cache' } } } }"
            ),
            "'/srv/cache' loaded",
        ),
    ],
)
async def test_what_a_configuration_reaches_beside_the_bundle_needs_approval(
    more: str, reason: str
) -> None:
    assert reason in (await read(made(ONNX_MANIFEST, ONNX_CONFIG + more))).code


@pytest.mark.parametrize(
    "more",
    [
        'parameters { key: "intra_op_thread_count" value { string_value: "2" } }',
        'parameters { key: "mode" value { string_value: "a.b..c" } }',
    ],
)
async def test_an_option_that_is_no_path_needs_no_approval(more: str) -> None:
    assert (await read(made(ONNX_MANIFEST, ONNX_CONFIG + more))).code == ""


async def test_labels_in_the_bundle_are_allowed() -> None:
    config = changed('name: "OUTPUT0"', 'name: "OUTPUT0", label_filename: "labels.txt"', CONFIG)

    assert await read(made(config=config))


async def test_what_was_signed_and_what_it_says_must_agree() -> None:
    files = {"busbar.yaml": MANIFEST.encode(), "config.pbtxt": CONFIG.encode(), "1/m": b"x"}
    other = make({**files, "busbar.yaml": changed('version: "1"', 'version: "2"').encode()})
    mixed = Made(other.contents.replace(b"\x12\x012", b"\x12\x011"), other.chunks)

    with pytest.raises(Rejected, match=r"pushed as '1', busbar\.yaml says '2'"):
        await read(mixed)


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
async def test_a_bad_manifest_is_refused(manifest: str, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        await read(made(manifest))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("nonsense", "cannot be parsed"),
        (changed("max_batch_size: 8", "max_batch_size: -1", CONFIG), "max_batch_size is -1"),
        (changed('backend: "python"', "", CONFIG), "neither backend nor platform"),
        ('backend: "python"', "must declare its inputs and outputs"),
        (changed('"COUNT"', '"OUTPUT0"', CONFIG), "more than once: OUTPUT0"),
        ("\ufeff" + CONFIG, "cannot be parsed"),
        (changed('"python"', '"../../evil"', CONFIG), "is no name of a backend"),
        (CONFIG + 'default_model_filename: "../2/x"', "not a plain file name"),
        (CONFIG + 'default_model_filename: "model.py\\n"', "not a plain file name"),
        (
            CONFIG + 'cc_model_filenames { key: "8.0" value: "/opt/x" }',
            "cc_model_filenames '/opt/x' is not",
        ),
        (
            changed('name: "COUNT"', 'name: "COUNT", label_filename: "../../etc/passwd"', CONFIG),
            r"label_filename '\.\./\.\./etc/passwd' is not a plain file name",
        ),
        (
            CONFIG + 'model_warmup { inputs { key: "INPUT0" value { input_data_file: ".." } } }',
            "input_data_file '..' is not",
        ),
        (
            CONFIG + 'sequence_batching { state { initial_state { data_file: "/dev/zero" } } }',
            "data_file '/dev/zero' is not",
        ),
        (CONFIG + "version_policy: {specific: {versions: [1, 3]}}", "no file in 3/"),
    ],
)
async def test_a_bad_triton_configuration_is_refused(config: str, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        await read(made(config=config))


async def test_a_file_that_is_not_text_is_refused() -> None:
    files = {"busbar.yaml": b"\xff\xfe", "config.pbtxt": CONFIG.encode(), "1/m": b"x"}

    with pytest.raises(Rejected, match="not UTF-8"):
        await read(make(files))


async def test_a_manifest_of_absurd_size_is_not_read() -> None:
    files = {"busbar.yaml": bytes(5 * 1024 * 1024), "config.pbtxt": CONFIG.encode(), "1/m": b"x"}

    with pytest.raises(Rejected, match="larger than"):
        await read(make(files))
