"""Reading an uploaded bundle without unpacking it: table, manifest and Triton's configuration."""

from __future__ import annotations

import importlib.util
import tarfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import yaml
from busbar_errors import Rejected
from google.protobuf import text_format
from jinja2 import TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import ValidationError

from busbar_scheduler.domain.archive import CONFIG_FILE, MANIFEST_FILE, Contents, Kind, Member
from busbar_scheduler.domain.bundle import BundleFile
from busbar_scheduler.domain.manifest import Manifest
from busbar_scheduler.domain.model_config import ConfigTensor, ModelConfig, contradictions

_TEXT_FILE_MAX_BYTES = 4 * 1024 * 1024
_ERRORS_SHOWN_MAX = 10
_BLOCK_BYTES = tarfile.BLOCKSIZE
_TENSOR_DATATYPES = {"TYPE_STRING": "BYTES"}


def read_bundle(archive: Path) -> Manifest:
    """The manifest of a good bundle; raises Rejected with all that is wrong with a bad one."""
    try:
        with tarfile.open(archive, "r:") as tar:
            _check_contents(tar)
            manifest_text, config_text = _text(tar, MANIFEST_FILE), _text(tar, CONFIG_FILE)
        with archive.open("rb") as file:
            _check_end(file, tar.offset)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise Rejected(f"not an uncompressed tar archive: {error}") from error
    manifest = parse_manifest(manifest_text)
    wrong = contradictions(manifest, parse_config(config_text))
    if wrong:
        raise Rejected("; ".join(wrong[:_ERRORS_SHOWN_MAX]))
    return manifest.manifest()


def _check_contents(tar: tarfile.TarFile) -> None:
    contents = Contents()
    for info in tar:
        reason = contents.admit(Member(_path(info), _kind(info), info.size))
        if reason:
            raise Rejected(reason)
    if missing := contents.missing():
        raise Rejected(missing)


def _path(info: tarfile.TarInfo) -> str:
    return f"{info.name}/" if info.isdir() else info.name


def _kind(info: tarfile.TarInfo) -> Kind:
    if info.type in {tarfile.REGTYPE, tarfile.AREGTYPE}:
        return Kind.FILE
    return Kind.FOLDER if info.type == tarfile.DIRTYPE else Kind.OTHER


def _check_end(file: BinaryIO, end: int) -> None:
    """Nothing may follow the last member, or two readers could see two different bundles."""
    file.seek(end)
    blocks = 0
    while block := file.read(_BLOCK_BYTES):
        if block.strip(b"\0"):
            raise Rejected("the archive has a broken header or something after its end")
        blocks += 1
    if not blocks:
        raise Rejected("the archive ends in the middle")


def _text(tar: tarfile.TarFile, name: str) -> str:
    member = tar.getmember(name)
    if member.size > _TEXT_FILE_MAX_BYTES:
        raise Rejected(f"{name} is larger than {_TEXT_FILE_MAX_BYTES} bytes")
    file = tar.extractfile(member)
    content = file.read() if file else b""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise Rejected(f"{name} is not UTF-8: {error}") from error


def parse_manifest(text: str) -> BundleFile:
    """Read busbar.yaml; raises Rejected."""
    try:
        content = yaml.load(text, Loader=_PlainLoader)  # noqa: S506  # a SafeLoader, and stricter
        manifest = BundleFile.model_validate(content)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, ValidationError):
            raise Rejected(f"{MANIFEST_FILE}: {_all_errors(error)}") from error
        raise Rejected(f"{MANIFEST_FILE} is not plain YAML: {error}") from error
    try:
        ImmutableSandboxedEnvironment().parse(manifest.chat_template)
    except (TemplateSyntaxError, RecursionError) as error:
        raise Rejected(f"{MANIFEST_FILE}: chat_template: {error}") from error
    return manifest


def _all_errors(error: ValidationError) -> str:
    shown = error.errors(include_url=False, include_input=False)[:_ERRORS_SHOWN_MAX]
    return "; ".join(
        f"{'.'.join(str(part) for part in one['loc']) or 'the file'}: {one['msg']}" for one in shown
    )


class _PlainLoader(yaml.SafeLoader):
    """Neither aliases, which expand without bound, nor repeated keys, which hide one another."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = {str(key) for key in keys if keys.count(key) > 1}
        if repeated:
            raise yaml.YAMLError(f"repeated keys: {', '.join(sorted(repeated))}")
        return super().construct_mapping(node, deep=deep)


def parse_config(text: str) -> ModelConfig:
    """Read config.pbtxt; raises Rejected."""
    message = _model_config_pb2().ModelConfig()
    try:
        text_format.Parse(text, message)
    except (text_format.ParseError, RecursionError) as error:
        raise Rejected(f"{CONFIG_FILE} cannot be parsed: {error}") from error
    repeated = _repeated([one.name for one in (*message.input, *message.output)])
    if repeated:
        raise Rejected(f"{CONFIG_FILE} declares tensors more than once: {', '.join(repeated)}")
    return ModelConfig(
        name=message.name,
        backend=message.backend,
        platform=message.platform,
        max_batch_size=message.max_batch_size,
        inputs={one.name: _tensor(one) for one in message.input},
        outputs={one.name: _tensor(one) for one in message.output},
        decoupled=message.model_transaction_policy.decoupled,
        instances=sum(group.count or 1 for group in message.instance_group),
    )


def _repeated(names: list[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _tensor(declared: Any) -> ConfigTensor:  # ModelInput or ModelOutput
    datatype = str(
        type(declared)
        .DESCRIPTOR.fields_by_name["data_type"]
        .enum_type.values_by_number[declared.data_type]
        .name
    )
    return ConfigTensor(
        datatype=_TENSOR_DATATYPES.get(datatype, datatype.removeprefix("TYPE_")),
        dims=tuple(declared.dims),
        optional=bool(getattr(declared, "optional", False)),
    )


@cache
def _model_config_pb2() -> ModuleType:
    """tritonclient's generated module without its package, whose import takes 25 MiB."""
    package = importlib.util.find_spec("tritonclient.grpc")
    folders = package.submodule_search_locations if package else None
    if not folders:
        raise RuntimeError("tritonclient is not installed")
    path = Path(folders[0]) / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("busbar_scheduler._triton_model_config_pb2", path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
