"""busbar.yaml: the manifest inside a bundle; the schema is deploy/demo/models/README.md."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from busbar_scheduler.domain.manifest import Manifest, Task

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
CHAT_TEMPLATE_MAX_CHARS = 65_536
WARMUP_ELEMENTS_MAX = 65_536

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
TensorName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Positive = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]
Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP32", "FP64", "BYTES",
]  # fmt: skip
Element = bool | int | float | str


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tensor(_Section):
    """One tensor, its data flat and row-major."""

    datatype: Datatype
    shape: list[Annotated[int, Field(ge=0, strict=True)]] = Field(max_length=16)
    data: list[Element] = Field(max_length=WARMUP_ELEMENTS_MAX)

    @model_validator(mode="after")
    def _holds_what_it_says(self) -> Tensor:
        count = math.prod(self.shape)
        if len(self.data) != count:
            raise ValueError(f"shape {self.shape} needs {count} elements, not {len(self.data)}")
        for element in self.data:
            if not _is_a(self.datatype, element):
                raise ValueError(f"{element!r} is not {self.datatype}")
        return self


def _is_a(datatype: str, element: Element) -> bool:
    if datatype == "BYTES":
        return isinstance(element, str)
    if datatype == "BOOL":
        return isinstance(element, bool)
    if isinstance(element, (bool, str)):
        return False
    if datatype.startswith("FP"):
        return math.isfinite(element)
    if not isinstance(element, int):
        return False
    bits = int(datatype.lstrip("UINT"))
    low, high = (0, 2**bits) if datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    return low <= element < high


class ExpectedTensor(Tensor):
    """What an output must be, within `tolerance` per element."""

    tolerance: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class Warmup(_Section):
    """One real inference, run after loading and before any work is pulled; again each `every_s`."""

    inputs: dict[TensorName, Tensor] = Field(min_length=1, max_length=64)
    expect: dict[TensorName, ExpectedTensor] = Field(min_length=1, max_length=64)
    timeout_s: float = Field(default=30.0, gt=0, le=600)
    every_s: Annotated[float, Field(ge=5, le=86_400)] | None = None


class Limits(_Section):
    """Bounds that the gateway enforces; absent means none of the model's own."""

    max_payload_bytes: Positive | None = None
    max_input_tokens: Positive | None = None
    max_output_tokens: Positive | None = None


class Usage(_Section):
    """Which outputs count tokens."""

    input_tokens: TensorName | None = None
    output_tokens: TensorName | None = None
    cached_tokens: TensorName | None = None

    @model_validator(mode="after")
    def _cached_are_input_tokens(self) -> Usage:
        if self.cached_tokens and not self.input_tokens:
            raise ValueError("cached_tokens needs input_tokens, of which they are a part")
        return self


class BundleFile(_Section):
    """The whole file."""

    name: Name
    version: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    task: Task
    slots: Positive
    memory_mb: Positive
    instances: Positive = 1
    decoupled: bool = False
    answers_within_s: Annotated[float, Field(ge=1, le=3_600)] | None = None
    price_class: Name
    power_w: Annotated[int, Field(ge=0, le=100_000, strict=True)] = 0
    limits: Limits = Limits()
    usage: Usage = Usage()
    truncate: Literal["refuse", "on-request"] = "refuse"
    chat_template: Annotated[str, StringConstraints(max_length=CHAT_TEMPLATE_MAX_CHARS)] = ""
    stop: list[Annotated[str, StringConstraints(min_length=1, max_length=256)]] = Field(
        default=[], max_length=16
    )
    warmup: Warmup

    @model_validator(mode="after")
    def _chat_has_a_template(self) -> BundleFile:
        if self.task is Task.CHAT and not self.chat_template:
            raise ValueError("chat_template is required when task is chat")
        if self.task is not Task.CHAT and (self.chat_template or self.stop):
            raise ValueError("chat_template and stop are for task chat only")
        return self

    def manifest(self) -> Manifest:
        """What placements and routes carry of it."""
        return Manifest(
            name=self.name,
            version=self.version,
            task=self.task,
            slots=self.slots,
            memory_mib=self.memory_mb,
            price_class=self.price_class,
            max_input_tokens=self.limits.max_input_tokens or 0,
            max_output_tokens=self.limits.max_output_tokens or 0,
            max_payload_bytes=self.limits.max_payload_bytes or 0,
            chat_template=self.chat_template,
            input_tokens_output=self.usage.input_tokens or "",
            output_tokens_output=self.usage.output_tokens or "",
            cached_tokens_output=self.usage.cached_tokens or "",
            stop=tuple(self.stop),
            power_w=self.power_w,
        )
