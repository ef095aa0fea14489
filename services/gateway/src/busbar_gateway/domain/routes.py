"""What the gateway knows of a deployment: who may use it, what it takes, where it is ready."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Task = Literal["tensor", "embed", "chat"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is; always from the key, never from the request's body."""

    tenant_id: str
    key_id: str
    deployments: frozenset[str] = frozenset()
    """Deployments the key is limited to; empty means all that are open to the tenant."""
    project_id: str = ""
    """Empty: the tenant's default project."""

    def may_name(self, deployment: str) -> bool:
        """Whether the key's allow-list has it, or it has none."""
        return not self.deployments or deployment in self.deployments


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the bundle says about itself. Limits of 0 mean none of its own."""

    name: str
    version: str
    task: Task
    price_class: str
    slots: int = 1
    max_input_tokens: int = 0
    max_output_tokens: int = 0
    max_payload_bytes: int = 0
    chat_template: str = ""
    stop: tuple[str, ...] = ()
    token_outputs: tuple[str, ...] = ()
    """Outputs that count tokens, which decide the price; empty when the model counts none."""
    cached_tokens_output: str = ""
    """That of `token_outputs` which counts prompt tokens found in a cache; empty for none."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output as Triton describes it; -1 in `shape` is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    any_shape: bool = False
    """True where the shape cannot be compared (ragged batches, shape tensors)."""
    fixed_bytes: int = -1
    """Size of the data where shape and datatype leave no choice; -1 where they do."""


@dataclass(frozen=True, slots=True)
class ModelSignature:
    """The tensors of a model."""

    versions: frozenset[str]
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    max_batch_size: int
    """0 when the model does not batch; else the first dimension of every tensor is the batch."""
    decoupled: bool
    """True when a request has any number of responses, so it must be streamed."""


@dataclass(frozen=True, slots=True)
class Target:
    """Ready capacity in one region."""

    region: str
    ready_slots: int


@dataclass(frozen=True, slots=True)
class Canary:
    """Another version of a deployment, which takes a share of its requests."""

    track: str
    """What takes the place of the deployment's name in its queue and at Triton."""
    digest: str
    percent: int
    targets: tuple[Target, ...] = ()
    ready_slots: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ready_slots", sum(target.ready_slots for target in self.targets))

    @property
    def takes_work(self) -> bool:
        """Whether any request goes to it."""
        return self.percent > 0 and self.ready_slots > 0


_PERCENT = 100


def slots_together(stable_slots: int, canary: Canary | None) -> int:
    """Requests that both versions can work on at once while each gets its share of them."""
    if canary is None or not canary.takes_work:
        return stable_slots
    if not stable_slots or canary.percent >= _PERCENT:
        return canary.ready_slots
    left_percent = _PERCENT - canary.percent
    return min(
        stable_slots * _PERCENT // left_percent, canary.ready_slots * _PERCENT // canary.percent
    )


@dataclass(frozen=True, slots=True)
class Route:
    """A deployment as customers meet it."""

    deployment: str
    manifest: Manifest
    created_unix_s: int
    targets: tuple[Target, ...] = ()
    tenants: frozenset[str] = frozenset()
    """Tenants that may use it; empty means all."""
    signature: ModelSignature | None = None
    """None until a replica was ready once."""
    metadata: bytes = b""
    """Serialized inference.ModelMetadataResponse; empty until a replica was ready once."""
    config: bytes = b""
    """Serialized inference.ModelConfigResponse; empty until a replica was ready once."""
    wakes_within_s: float = 0.0
    """How long it takes to be ready once it is asked for; 0 when asking does not bring it back."""
    digest: str = ""
    """Bundle of the version that serves."""
    canary: Canary | None = None
    """Another version that is being tried."""
    stable_slots: int = field(init=False, default=0)
    """Of the version that serves."""
    ready_slots: int = field(init=False, default=0)
    """Of both versions, as far as their shares of the requests allow."""

    def __post_init__(self) -> None:
        stable_slots = sum(target.ready_slots for target in self.targets)
        object.__setattr__(self, "stable_slots", stable_slots)
        object.__setattr__(self, "ready_slots", slots_together(stable_slots, self.canary))

    def slots_by_region(self) -> dict[str, int]:
        """Ready slots of both versions, where there are any."""
        slots = Counter[str]()
        for target in (*self.targets, *(self.canary.targets if self.canary else ())):
            slots[target.region] += target.ready_slots
        return {region: ready for region, ready in slots.items() if ready > 0}

    @property
    def ready(self) -> bool:
        """Whether any replica takes work now."""
        return self.ready_slots > 0

    @property
    def usable(self) -> bool:
        """Whether a request is worth sending: something is ready, or asking brings it back."""
        return self.ready or (self.wakes_within_s > 0 and self.signature is not None)

    @property
    def unready(self) -> str:
        """What somebody is told who asks a deployment that takes no work now.

        Why is the operators' to read: it names nodes, and paths and code of other tenants' models.
        """
        return f"the model '{self.deployment}' is not ready: no replica is ready"

    def open_to(self, caller: Caller) -> bool:
        """Whether this caller may know of the deployment at all."""
        if self.tenants and caller.tenant_id not in self.tenants:
            return False
        return caller.may_name(self.deployment)
