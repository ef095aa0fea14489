"""Settings of the scheduler, from the environment."""

from __future__ import annotations

import os
import socket

from busbar_messaging.bundles.settings import BundleKeySettings
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

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
    log_level: str = "info"
