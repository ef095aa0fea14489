"""What a config.pbtxt has Triton read and load, beside the model itself.

Triton joins the names in it to the model's folder as they are: "../../etc/passwd" as the labels of
an output is read, and whoever asks for a classification gets its lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_PLAIN_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_SHOWN_MAX = 100
_ELSEWHERE = re.compile(r"[/\\]|^\.\.?$")


def misplaced_files(config: Any) -> list[str]:
    """The files that an inference.ModelConfig names otherwise than by a plain name, in words.

    Such a name may lead out of the bundle; no approval allows that.
    """
    return [
        f"{field} {name[:_SHOWN_MAX]!r} is not a plain file name"
        for field, name in _files(config)
        if name and not _PLAIN_FILE_NAME.fullmatch(name)
    ]


def loaded_by(config: Any) -> list[str]:
    """What an inference.ModelConfig has loaded, or may have read or written, beside its files."""
    return [
        *config.model_operations.op_library_filename,
        *([config.runtime] if config.runtime else []),
        *(agent.name for agent in config.model_repository_agents.agents),
        *(value for value in _parameters(config) if _ELSEWHERE.search(value)),
    ]


def _files(config: Any) -> Iterator[tuple[str, str]]:
    yield "default_model_filename", config.default_model_filename
    for name in config.cc_model_filenames.values():
        yield "cc_model_filenames", name
    for output in config.output:
        yield "label_filename", output.label_filename
    for warmup in config.model_warmup:
        for given in warmup.inputs.values():
            yield "model_warmup: input_data_file", given.input_data_file
    for state in config.sequence_batching.state:
        for initial in state.initial_state:
            yield "initial_state: data_file", initial.data_file


def _parameters(config: Any) -> Iterator[str]:
    """Options of the backend and of what speeds it up: some are paths of what to read or write."""
    for parameter in config.parameters.values():
        yield parameter.string_value
    accelerators = config.optimization.execution_accelerators
    for accelerator in (
        *accelerators.gpu_execution_accelerator,
        *accelerators.cpu_execution_accelerator,
    ):
        yield from accelerator.parameters.values()
