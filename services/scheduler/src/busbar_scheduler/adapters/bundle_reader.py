"""Reading a pushed bundle: its manifest, Triton's configuration, and whether it brings code."""

from __future__ import annotations

import importlib.util
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from busbar_contracts.scheduler.v1.bundle_pb2 import BundleContents, BundledFile
from busbar_errors import Rejected
from busbar_messaging.bundles.approval import HEAD_BYTES, backend_of, code_in
from busbar_messaging.bundles.configured import loaded_by, misplaced_files
from busbar_messaging.bundles.contents import CONFIG_FILE, MANIFEST_FILE
from google.protobuf import text_format
from jinja2 import TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import ValidationError

from busbar_scheduler.domain.bundle import BundleFile
from busbar_scheduler.domain.manifest import Manifest
from busbar_scheduler.domain.model_config import (
    ConfigTensor,
    ModelConfig,
    contradictions,
    missing_versions,
)

_TEXT_FILE_MAX_BYTES = 4 * 1024 * 1024
_ERRORS_SHOWN_MAX = 10
_TENSOR_DATATYPES = {"TYPE_STRING": "BYTES"}


@dataclass(frozen=True, slots=True)
class Inspected:
    """What a bundle turned out to be."""

    manifest: Manifest
    code: str
    """Why it needs an operator's approval; empty when it is data alone."""


Chunk = Callable[[bytes], Awaitable[bytes]]
"""The content of the chunk with this SHA-256."""


async def inspect(contents: BundleContents, chunk: Chunk) -> Inspected:
    """Read a bundle's own files; raises Rejected with all that is wrong with a bad one."""
    files = {file.path: file for file in contents.files}
    manifest = parse_manifest(await _text(files[MANIFEST_FILE], chunk))
    config = parse_config(await _text(files[CONFIG_FILE], chunk))
    said = [(contents.name, manifest.name), (contents.version, manifest.version)]
    wrong = [
        *(
            f"pushed as {pushed!r}, {MANIFEST_FILE} says {own!r}"
            for pushed, own in said
            if pushed != own
        ),
        *contradictions(manifest, config),
        *missing_versions(config, files),
    ]
    if wrong:
        raise Rejected("; ".join(wrong[:_ERRORS_SHOWN_MAX]))
    return Inspected(manifest.manifest(), await _code(config, contents, chunk))


async def _code(config: ModelConfig, contents: BundleContents, chunk: Chunk) -> str:
    """Why it needs approval: by its configuration, else by how its files begin."""
    backend = backend_of(config.backend, config.platform)
    if reason := code_in(backend, config.loaded, {}):
        return reason
    for file in contents.files:
        head = (await chunk(file.chunks[0].sha256))[:HEAD_BYTES] if file.chunks else b""
        if reason := code_in(backend, (), {file.path: head}):
            return reason
    return ""


async def _text(file: BundledFile, chunk: Chunk) -> str:
    if file.size_bytes > _TEXT_FILE_MAX_BYTES:
        raise Rejected(f"{file.path} is larger than {_TEXT_FILE_MAX_BYTES} bytes")
    content = b"".join([await chunk(one.sha256) for one in file.chunks])
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise Rejected(f"{file.path} is not UTF-8: {error}") from error


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
        misplaced_files=tuple(misplaced_files(message)),
        versions=tuple(message.version_policy.specific.versions),
        loaded=tuple(loaded_by(message)),
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
