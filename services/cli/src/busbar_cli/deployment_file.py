"""The file that `busbar deploy` takes."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from busbar_cli import plain_yaml
from busbar_cli.failures import CommandError, Exit

EXAMPLE = """\
- name: chat
  path: models/tiny-lm      # pushed first; or bundle: NAME or DIGEST of a pushed one
  replicas: 2               # default 1
  regions: [r1]             # default: all
  tenants: [acme]           # ids or names; default: all
  survives_site_loss: true  # 2 are left when any one site is lost; default: no
  pins: [r1/s1, r1/s2/n4]   # sites and nodes it may run on; default: all
  per_site_max: 3           # also per_feeder_max; default: any number
  max_replicas: 6           # how far demand may scale it, with replicas: 0 from and to nothing;
                            # default: not at all
  scale_down_after_s: 600   # how long less must be asked before replicas go; default: 300
  value_per_request: 0.0004 # what a served request brings in; default: not known
  rollout:                  # try a new version beside the old one, with a share of the requests;
                            # default: it takes them all as soon as it is ready
    canary_percent: 10      # share of the requests that it begins with
    observe_s: 120          # how long it is watched, with that share and with half of them
    max_error_ratio: 0.01   # how much larger its share of failed requests may be
    max_latency_ratio: 1.5  # how many times as long its typical answer may take
    min_samples: 50         # requests that each has to have had, but to go back for failures
    ready_within_s: 600     # how long its replicas may take to be ready
- name: echo
  bundle: echo-fp32
  at_once: true             # a new version takes the old one's place before it is ready: nothing
                            # answers meanwhile, but there need not be room for both; default: no
"""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]

Count = Annotated[int, Field(ge=0, le=1000, strict=True)]


def _any_number_unsaid(most: int) -> int:
    if most == 0:
        raise ValueError("0 would mean any number: leave it out for that, or say 1 or more")
    return most


Most = Annotated[Count, AfterValidator(_any_number_unsaid)]
"""The API has 0 for any number: nobody who types 0 means that."""


def _some(named: list[str]) -> list[str]:
    if not named:
        raise ValueError("an empty list would mean all: leave it out, or name some")
    return named


Some = AfterValidator(_some)


class RolloutTerms(BaseModel):
    """How a new version is tried; the scheduler's defaults hold for what is not said."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    canary_percent: Annotated[int, Field(ge=1, le=50, strict=True)] | None = None
    observe_s: Annotated[int, Field(ge=1, le=604_800, strict=True)] | None = None
    max_error_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    max_latency_ratio: Annotated[float, Field(ge=1, le=100)] | None = None
    min_samples: Annotated[int, Field(ge=5, le=1_000_000, strict=True)] | None = None
    ready_within_s: Annotated[int, Field(ge=1, le=86_400, strict=True)] | None = None


class Declared(BaseModel):
    """One deployment of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    bundle: str | None = None
    path: Path | None = None
    replicas: Count = 1
    regions: Annotated[list[Name], Some] = []
    tenants: Annotated[list[str], Some] = []
    survives_site_loss: bool = False
    pins: Annotated[list[str], Some] = []
    per_site_max: Most = 0
    per_feeder_max: Most = 0
    max_replicas: Count = 0
    scale_down_after_s: Annotated[int, Field(ge=1, le=86_400, strict=True)] = 300
    value_per_request: Annotated[Decimal, Field(ge=0, le=1_000_000, decimal_places=9)] = Decimal(0)
    rollout: RolloutTerms | None = None
    at_once: StrictBool = False

    @model_validator(mode="after")
    def _at_once_or_tried(self) -> Declared:
        if self.at_once and self.rollout is not None:
            raise ValueError("at_once would not try the new version: leave it or rollout out")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Declared:
        if (self.bundle is None) == (self.path is None):
            raise ValueError("give either bundle or path")
        return self

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Declared:
        if 0 < self.max_replicas < self.replicas:
            raise ValueError(
                f"{self.replicas} replicas are wanted, but max_replicas allows {self.max_replicas}"
            )
        return self


_FILE = TypeAdapter(Annotated[list[Declared], Field(min_length=1, max_length=1000)])


def read_deployments(file: Path) -> list[Declared]:
    """What the file declares, paths made relative to it; raises CommandError."""
    try:
        content: Any = plain_yaml.load(file.read_text())
    except FileNotFoundError as error:
        raise CommandError(f"there is no file {file}", Exit.USAGE) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CommandError(f"{file} cannot be read: {error}", Exit.USAGE) from error
    try:
        declared = _FILE.validate_python(content)
    except ValidationError as error:
        raise CommandError(
            f"{file} is not like this example:\n{EXAMPLE}\n{file}: {_problems(error)}", Exit.USAGE
        ) from error
    names = [one.name for one in declared]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise CommandError(f"{file} declares {', '.join(repeated)} more than once", Exit.USAGE)
    return [
        one.model_copy(update={"path": file.parent / one.path}) if one.path else one
        for one in declared
    ]


def _problems(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in one['loc']) or 'the file'}: {one['msg']}"
        for one in error.errors(include_url=False)
    )
