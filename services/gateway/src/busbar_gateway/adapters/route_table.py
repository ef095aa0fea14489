"""Routes in memory, filled by watching the bucket that the scheduler writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import structlog
from busbar_contracts.scheduler.v1 import deployment_pb2, plan_pb2
from busbar_messaging import topology
from busbar_messaging.bucket_changes import Change, Current, Deleted
from busbar_messaging.watching import follow
from google.protobuf.message import DecodeError
from nats.aio.client import Client
from tritonclient.grpc import model_config_pb2, service_pb2

from busbar_gateway.domain.failures import UnknownDeployment
from busbar_gateway.domain.routes import (
    Caller,
    Canary,
    Manifest,
    ModelSignature,
    Route,
    Target,
    Task,
    TensorSpec,
)
from busbar_gateway.domain.tensors import fixed_bytes

log = structlog.get_logger()

_TASKS: dict[int, Task] = {
    deployment_pb2.MODEL_TASK_TENSOR: "tensor",
    deployment_pb2.MODEL_TASK_EMBED: "embed",
    deployment_pb2.MODEL_TASK_CHAT: "chat",
}


class RouteTable:
    """All deployments. Keeps serving from memory while the bus is away."""

    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}
        self._fencing_tokens: dict[str, int] = {}
        self._on_change: Callable[[], None] = lambda: None
        self.read_once = False

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every change."""
        self._on_change = listener

    def visible(self, caller: Caller) -> list[Route]:
        """The deployments that this caller may use, by name."""
        return [self._routes[name] for name in sorted(self._routes) if self._open(name, caller)]

    def find(self, caller: Caller, name: str) -> Route:
        """Return the route of a deployment.

        Raises UnknownDeployment when there is none or the caller may not use
        it; the two are never told apart.
        """
        if name in self._routes and self._open(name, caller):
            return self._routes[name]
        raise _unknown(name)

    def check_open(self, caller: Caller, name: str) -> None:
        """Raise UnknownDeployment when the caller may not have a deployment's answers. It may have
        those of one that was withdrawn since."""
        route = self._routes.get(name)
        allowed = route.open_to(caller) if route is not None else caller.may_name(name)
        if not allowed:
            raise _unknown(name)

    def current(self, name: str) -> Route | None:
        """The route as it is now, whoever asks; None when it was withdrawn."""
        return self._routes.get(name)

    def apply(self, change: Change) -> None:
        """Take one change of the bucket."""
        if isinstance(change, Current):
            self.read_once = True
            return
        if isinstance(change, Deleted):
            self._routes.pop(change.key, None)
            self._fencing_tokens.pop(change.key, None)
        else:
            self._put(change.key, change.value)
        self._on_change()

    async def follow(self, client: Client) -> None:
        """Keep up with the bucket, for ever."""
        async for change in follow(client, topology.ROUTES.name):
            self.apply(change)

    def _open(self, name: str, caller: Caller) -> bool:
        return self._routes[name].open_to(caller)

    def _put(self, key: str, value: bytes) -> None:
        try:
            stored = plan_pb2.Route.FromString(value)
            route = read_route(stored)
        except DecodeError:
            log.exception("unreadable route", deployment=key)
            return
        if stored.fencing_token < self._fencing_tokens.get(key, 0):
            log.warning("route of an earlier leader ignored", deployment=key)
            return
        self._fencing_tokens[key] = stored.fencing_token
        self._routes[key] = route


def _unknown(name: str) -> UnknownDeployment:
    return UnknownDeployment(f"there is no model {name[:64]!r}")


def read_route(stored: plan_pb2.Route) -> Route:
    """Translate; raises DecodeError when the model's metadata cannot be read."""
    manifest = stored.manifest
    return Route(
        deployment=stored.deployment,
        manifest=Manifest(
            name=manifest.name,
            version=manifest.version,
            task=_TASKS.get(manifest.task, "tensor"),
            price_class=manifest.price_class,
            slots=manifest.slots,
            max_input_tokens=manifest.max_input_tokens,
            max_output_tokens=manifest.max_output_tokens,
            max_payload_bytes=manifest.max_payload_bytes,
            chat_template=manifest.chat_template,
            stop=tuple(manifest.stop),
            token_outputs=tuple(
                output
                for output in (
                    manifest.input_tokens_output,
                    manifest.output_tokens_output,
                    manifest.cached_tokens_output,
                )
                if output
            ),
            cached_tokens_output=manifest.cached_tokens_output,
        ),
        created_unix_s=stored.created_unix_ms // 1000,
        targets=_targets(stored.targets),
        tenants=frozenset(stored.tenants),
        signature=_signature(stored.model_metadata, stored.model_config),
        metadata=stored.model_metadata,
        config=stored.model_config,
        wakes_within_s=max(1, stored.wakes_within_ms) / 1000 if stored.wakes else 0.0,
        digest=stored.bundle_digest,
        canary=_canary(stored.canary) if stored.HasField("canary") else None,
    )


def _canary(stored: plan_pb2.CanaryRoute) -> Canary:
    targets = _targets(stored.targets)
    return Canary(stored.track, stored.bundle_digest, stored.percent, targets)


def _targets(stored: Iterable[plan_pb2.RouteTarget]) -> tuple[Target, ...]:
    return tuple(Target(one.region, one.ready_slots) for one in stored)


def _signature(metadata: bytes, config: bytes) -> ModelSignature | None:
    if not metadata or not config:
        return None
    described: Any = service_pb2.ModelMetadataResponse.FromString(metadata)  # pyright: ignore[reportAttributeAccessIssue]
    configured: Any = service_pb2.ModelConfigResponse.FromString(config).config  # pyright: ignore[reportAttributeAccessIssue]
    settings = {given.name: given for given in configured.input}
    return ModelSignature(
        versions=frozenset(described.versions),
        inputs={t.name: _input(t, settings.get(t.name)) for t in described.inputs},
        outputs={t.name: TensorSpec(t.name, t.datatype, tuple(t.shape)) for t in described.outputs},
        max_batch_size=configured.max_batch_size,
        decoupled=configured.model_transaction_policy.decoupled,
    )


def _input(tensor: Any, configured: model_config_pb2.ModelInput | None) -> TensorSpec:
    optional = bool(configured and configured.optional)
    any_shape = bool(configured and (configured.allow_ragged_batch or configured.is_shape_tensor))
    shape = tuple(tensor.shape)
    size = fixed_bytes(tensor.datatype, shape)
    return TensorSpec(tensor.name, tensor.datatype, shape, optional, any_shape, size)
