"""What the agent needs of a bundle's busbar.yaml: how to warm the model up."""

from __future__ import annotations

from pathlib import Path

import yaml
from busbar_errors import Rejected
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from busbar_node_agent.domain.tensors import Tensor

_MANIFEST_BYTES_MAX = 4 * 1024 * 1024

Scalar = bool | int | float | str


class _Part(BaseModel):
    # The scheduler has checked the rest when the bundle was pushed.
    model_config = ConfigDict(frozen=True, extra="ignore")


class TensorSpec(_Part):
    """A tensor as the manifest writes it."""

    datatype: str
    shape: tuple[int, ...]
    data: list[Scalar]

    def tensor(self) -> Tensor:
        """The same, as the domain has it."""
        return Tensor(self.datatype, self.shape, self.data)


class ExpectedTensor(TensorSpec):
    """What an output must be."""

    tolerance: float = Field(default=0.0, ge=0.0)


class WarmUp(_Part):
    """One real inference and its answer."""

    inputs: dict[str, TensorSpec]
    expect: dict[str, ExpectedTensor] = Field(min_length=1)
    timeout_s: float = Field(default=30.0, gt=0.0, le=600.0)
    every_s: float | None = Field(default=None, ge=5.0, le=86_400.0)
    """How often it is asked again while it works; None: only when something was odd."""


class Manifest(_Part):
    """busbar.yaml."""

    name: str
    decoupled: bool = False
    answers_within_s: float | None = Field(default=None, ge=1.0, le=3_600.0)
    """Longest that it says nothing while it has work; None: nobody can say."""
    warmup: WarmUp


def read_manifest(path: Path) -> Manifest:
    """Read busbar.yaml at `path`; raises Rejected."""
    if path.stat().st_size > _MANIFEST_BYTES_MAX:
        raise Rejected(f"busbar.yaml is larger than {_MANIFEST_BYTES_MAX} bytes")
    try:
        return Manifest.model_validate(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Rejected(f"busbar.yaml is not YAML: {error}") from error
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise Rejected(f"busbar.yaml: {'; '.join(problems)[:500]}") from error
