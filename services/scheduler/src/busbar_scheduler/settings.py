"""Settings of the scheduler, from the environment."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

from busbar_messaging.bundles.settings import BundleKeySettings
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from busbar_scheduler.domain.sweeping import Ages
from busbar_scheduler.usecases.push_bundle import PUSH_S_MAX

_GIB = 1024 * 1024 * 1024


def _own_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class Settings(BundleKeySettings):
    """BUSBAR_ and the name of the field, in capitals."""

    model_config = SettingsConfigDict(env_prefix="BUSBAR_", frozen=True)

    operator_token: SecretStr = Field(min_length=16)
    http_host: str = "127.0.0.1"
    http_port: int
    ops_port: int
    scheduler_id: str = Field(default_factory=_own_name)
    bundle_max_bytes: int = Field(default=4 * _GIB, ge=1)
    unused_models_after: timedelta = Field(default=timedelta(days=1), ge=timedelta(minutes=5))
    log_level: str = "info"

    @property
    def sweep_ages(self) -> Ages:
        """How long what nothing uses stays in the model store."""
        return Ages(
            unused_ms=round(self.unused_models_after.total_seconds() * 1_000),
            condemned_ms=3 * PUSH_S_MAX * 1_000,
        )
