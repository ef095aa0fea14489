"""What the gateway is told from outside."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Literal

from busbar_messaging.connection import BusSettings
from busbar_messaging.topology import NAME_PATTERN
from pydantic import Field, SecretStr


class GatewaySettings(BusSettings):
    """Read from BUSBAR_* and, for traces, OTEL_EXPORTER_OTLP_ENDPOINT."""

    region: str = Field(pattern=NAME_PATTERN)
    gateway_id: str = Field(
        pattern=NAME_PATTERN, description="unique among the gateways that run at the same time"
    )
    near_regions: list[str] = Field(
        default=[],
        description="other regions, the nearest first: where requests go that find no slot at home",
    )
    http_host: str = "127.0.0.1"
    http_port: int = Field(ge=0, le=65535)
    grpc_port: int = Field(ge=0, le=65535)
    grpc_bounded: bool = Field(
        default=False,
        description="grpcio, which bounds messages, serves unary gRPC; 0.5 ms of CPU a call",
    )
    ops_port: int = Field(ge=0, le=65535)
    key_hmac_secret: SecretStr = Field(min_length=16)
    state_dir: Path
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    trace_sample_ratio: float = Field(default=0.01, ge=0, le=1)
    trace_slow_after: timedelta = timedelta(seconds=2)
    otlp_endpoint: str | None = Field(default=None, validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    request_timeout: timedelta = Field(
        default=timedelta(seconds=60), description="for clients that give no deadline"
    )
    request_timeout_max: timedelta = timedelta(minutes=10)
    queue_max: int = Field(default=1024, ge=1, description="waiting requests for each deployment")
    unready_grace: timedelta = Field(
        default=timedelta(seconds=10),
        description="how long requests wait for a deployment that was ready a moment ago",
    )
    remembered_ready: timedelta = timedelta(seconds=30)
    usage_give_up_after: timedelta = timedelta(seconds=15)
    stop_notice: timedelta = Field(
        default=timedelta(0),
        description="how long a gateway that stops serves on, while clients and balancers leave it",
    )
    stop_grace: timedelta = Field(
        default=timedelta(seconds=10), description="for what is in hand after the notice"
    )
