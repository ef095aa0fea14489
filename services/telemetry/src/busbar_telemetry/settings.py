"""What telemetry is told from outside."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from busbar_messaging.connection import BusSettings
from pydantic import Field, SecretStr


class TelemetrySettings(BusSettings):
    """BUSBAR_NATS_*, BUSBAR_OPERATOR_TOKEN, listeners and how much is kept."""

    operator_token: SecretStr = Field(min_length=16)
    http_host: str = "127.0.0.1"
    http_port: int = Field(ge=0, le=65535)
    ops_port: int = Field(ge=0, le=65535)
    otlp_host: str = Field(
        default="127.0.0.1",
        description="OTLP has no credentials: bind it only where services and Triton can reach it",
    )
    otlp_http_port: int = Field(ge=0, le=65535)
    otlp_grpc_port: int = Field(ge=0, le=65535)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    trace_count_max: int = Field(default=2_000, ge=1)
    trace_bytes_max: int = Field(default=6 * 1024 * 1024, ge=64 * 1024)
    trace_slow_after: timedelta = timedelta(seconds=5)
    console_cookie_secure: bool = Field(
        default=False, description="set it where the console is reached over TLS"
    )
