"""The agent's settings, all from the environment."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Self

from busbar_messaging.bundles.settings import BundleKeySettings
from busbar_messaging.topology import NodeId
from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

_REPLACED = ("{http_port}", "{grpc_port}", "{metrics_port}", "{repository}")


def _absolute(path: Path) -> Path:
    return path.absolute()


class Settings(BundleKeySettings):
    """BUSBAR_*: which node this is, where its Triton comes from, what it may hold.

    Either `triton_command` starts a Triton that the agent supervises, or
    `triton_grpc_url` (host:port) names one that somebody else runs, which then
    has to read `model_repository` in explicit model control mode.
    """

    model_config = SettingsConfigDict(env_prefix="BUSBAR_", frozen=True)

    region: str
    site: str
    node: str
    hub_domain: str = ""
    """Behind a site's leaf node: the JetStream domain of the region's hub."""
    state_dir: Annotated[Path, AfterValidator(_absolute)]
    http_host: str = "127.0.0.1"
    ops_port: int = Field(ge=0, le=65535)
    log_level: str = "info"
    triton_command: list[str] = Field(default=[])
    triton_grpc_url: str = ""
    model_repository: Path | None = None
    memory_mib: int | None = Field(default=None, ge=1)
    slots: int = Field(default=256, ge=1, le=10_000)
    drain_grace: timedelta = timedelta(seconds=15)
    come_up_within: timedelta = timedelta(minutes=15)
    """Longest that an agent waits, before it says that it is ready, for models that it finds placed
    on its node as it starts. They serve as soon as they can in any case.
    """
    load_within: timedelta = Field(default=timedelta(minutes=10), gt=timedelta(0))
    """Longest that Triton may take to load one model, which has failed then."""
    bundle_mib_max: int = Field(default=4096, ge=1)
    bundle_cache_mib_max: int = Field(default=16 * 1024, ge=1)
    journal_kib: int = Field(default=16 * 1024, ge=64)
    """Room for cost records that the site has not stored yet, about 150 bytes each, twice."""
    loads_at_once: int = Field(default=2, ge=1, le=64)
    otlp_endpoint: str = Field(default="", validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT")

    @model_validator(mode="after")
    def _one_triton(self) -> Self:
        if bool(self.triton_command) == bool(self.triton_grpc_url):
            raise ValueError("set either BUSBAR_TRITON_COMMAND or BUSBAR_TRITON_GRPC_URL")
        return self

    @field_validator("triton_command")
    @classmethod
    def _placeholders(cls, command: list[str]) -> list[str]:
        missing = [name for name in _REPLACED if command and name not in " ".join(command)]
        if missing:
            raise ValueError(f"BUSBAR_TRITON_COMMAND lacks {', '.join(missing)}")
        return command

    @property
    def node_id(self) -> NodeId:
        """This node's place in the fleet; raises ValueError when that is not a name."""
        return NodeId(self.region, self.site, self.node)

    @property
    def repository(self) -> Path:
        """The directory that Triton loads models from."""
        return self.model_repository or self.state_dir / "repository"
