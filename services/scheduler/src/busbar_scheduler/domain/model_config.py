"""Whether Triton's config.pbtxt and busbar.yaml describe the same model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from busbar_scheduler.domain.bundle import BundleFile, Tensor
from busbar_scheduler.domain.manifest import Task

_COUNTING_DATATYPES = {"UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"}
_BACKEND = re.compile(r"^[a-z0-9_]{1,64}$")
"""Triton makes a path of it."""
_TASK_TENSORS: Mapping[Task, tuple[tuple[str, ...], tuple[str, ...]]] = {
    Task.TENSOR: ((), ()),
    Task.EMBED: (("text",), ("embedding",)),
    Task.CHAT: (("text_input",), ("text_output",)),
}
"""Inputs and outputs that the APIs of a task speak."""


@dataclass(frozen=True, slots=True)
class ConfigTensor:
    """An input or output as config.pbtxt declares it, without the batch dimension."""

    datatype: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What we read of a config.pbtxt."""

    name: str
    backend: str
    platform: str
    max_batch_size: int
    inputs: Mapping[str, ConfigTensor]
    outputs: Mapping[str, ConfigTensor]
    decoupled: bool
    instances: int
    """Instances over all groups; 0 when config.pbtxt leaves it to Triton."""
    misplaced_files: tuple[str, ...] = ()
    """Files that it names such that they may lie outside of the bundle, in words."""
    versions: tuple[int, ...] = ()
    """The versions to serve; none: the newest."""
    loaded: tuple[str, ...] = ()
    """What it has loaded beside the model."""


def contradictions(manifest: BundleFile, config: ModelConfig) -> list[str]:
    """Every way in which the two disagree; empty when they do not."""
    return [*_general(manifest, config), *_usage(manifest, config), *_warmup(manifest, config)]


def _general(manifest: BundleFile, config: ModelConfig) -> Iterator[str]:
    if config.name and config.name != manifest.name:
        yield f"config.pbtxt is named {config.name!r}, busbar.yaml {manifest.name!r}"
    if not (config.backend or config.platform):
        yield "config.pbtxt names neither backend nor platform"
    for name in (config.backend, config.platform):
        if name and not _BACKEND.match(name):
            yield f"{name[:100]!r} is no name of a backend"
    yield from config.misplaced_files
    if config.max_batch_size < 0:
        yield f"max_batch_size is {config.max_batch_size}"
    if not (config.inputs and config.outputs):
        yield "config.pbtxt must declare its inputs and outputs"
    yield from _task(manifest, config)
    yield from _execution(manifest, config)


def missing_versions(config: ModelConfig, paths: Iterable[str]) -> list[str]:
    """The versions that config.pbtxt wants served and that have no file."""
    there = {path.partition("/")[0] for path in paths}
    return [
        f"config.pbtxt serves version {version}, but there is no file in {version}/"
        for version in config.versions
        if str(version) not in there
    ]


def _task(manifest: BundleFile, config: ModelConfig) -> Iterator[str]:
    inputs, outputs = _TASK_TENSORS[manifest.task]
    for name in inputs:
        if name not in config.inputs:
            yield f"task {manifest.task} needs an input {name!r}"
    for name in outputs:
        if name not in config.outputs:
            yield f"task {manifest.task} needs an output {name!r}"


def _execution(manifest: BundleFile, config: ModelConfig) -> Iterator[str]:
    if config.decoupled != manifest.decoupled:
        yield f"decoupled: config.pbtxt says {config.decoupled}, busbar.yaml {manifest.decoupled}"
    if config.instances and config.instances != manifest.instances:
        yield f"instances: config.pbtxt says {config.instances}, busbar.yaml {manifest.instances}"


def _usage(manifest: BundleFile, config: ModelConfig) -> Iterator[str]:
    usage = manifest.usage
    for name in (usage.input_tokens, usage.output_tokens, usage.cached_tokens):
        if name is None:
            continue
        output = config.outputs.get(name)
        if output is None:
            yield f"usage names {name!r}, which is not an output"
        elif output.datatype not in _COUNTING_DATATYPES:
            yield f"usage names {name!r}, which is {output.datatype} and cannot count"


def _warmup(manifest: BundleFile, config: ModelConfig) -> Iterator[str]:
    for name, declared in config.inputs.items():
        if not declared.optional and name not in manifest.warmup.inputs:
            yield f"warmup lacks the required input {name!r}"
    for kind, tensors, declared_all in (
        ("input", manifest.warmup.inputs, config.inputs),
        ("output", manifest.warmup.expect, config.outputs),
    ):
        for name, tensor in tensors.items():
            declared = declared_all.get(name)
            if declared is None:
                yield f"warmup names {name!r}, which is not an {kind}"
            else:
                yield from _mismatch(kind, name, tensor, declared, config.max_batch_size)


def _mismatch(
    kind: str, name: str, tensor: Tensor, declared: ConfigTensor, max_batch_size: int
) -> Iterator[str]:
    if tensor.datatype != declared.datatype:
        yield f"warmup {kind} {name!r} is {tensor.datatype}, config.pbtxt says {declared.datatype}"
    dims = (-1, *declared.dims) if max_batch_size > 0 else declared.dims
    fits = len(dims) == len(tensor.shape) and all(
        want in {-1, got} for want, got in zip(dims, tensor.shape, strict=True)
    )
    if not fits:
        yield f"warmup {kind} {name!r} has shape {tensor.shape}, config.pbtxt says {list(dims)}"
