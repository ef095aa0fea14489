"""What billing is told by its environment; all names have the prefix BUSBAR_."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network

from busbar_messaging.connection import BusSettings
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_SECRET_BYTES_MIN = 16


class Settings(BusSettings):
    """Settings of the running service."""

    model_config = SettingsConfigDict(env_prefix="BUSBAR_", frozen=True)

    postgres_dsn: SecretStr
    key_hmac_secret: SecretStr
    operator_token: SecretStr
    http_host: str = "127.0.0.1"
    http_port: int = Field(ge=0, le=65535, description="the operator's API")
    account_port: int = Field(ge=0, le=65535, description="the customers' API")
    ops_port: int = Field(ge=0, le=65535)
    sites: list[str] = Field(default=["r1/s1"], description="region/site pairs, as JSON")
    stripe_api_key: SecretStr | None = Field(
        default=None, description="starts checkouts; without it there are none"
    )
    stripe_webhook_secret: SecretStr | None = Field(
        default=None, description="authenticates Stripe's events; without it none are taken"
    )
    stripe_api_base: str | None = Field(default=None, description="where Stripe's API is, if moved")
    low_balance_nanos: int = Field(
        default=5_000_000_000, ge=0, description="tells a tenant that set no threshold; 0: never"
    )
    webhook_allow_http: bool = Field(default=False, description="tenants' webhooks without TLS")
    webhook_allowed_networks: list[IPv4Network | IPv6Network] = Field(
        default=[], description="to send webhooks to besides public addresses, as JSON"
    )
    audit_interval: timedelta = Field(
        default=timedelta(seconds=30),
        gt=timedelta(0),
        description="how often what is new is audited",
    )
    audit_sweep_interval: timedelta = Field(
        default=timedelta(days=1),
        ge=timedelta(0),
        description="how long after an audit from zero the next begins",
    )
    close_automatically: bool = Field(
        default=True, description="issue every month's statements; otherwise by hand only"
    )
    close_delay: timedelta = Field(
        default=timedelta(hours=6),
        ge=timedelta(0),
        description="after a month's end, so that late usage is on its own month's statement",
    )
    close_interval: timedelta = Field(
        default=timedelta(minutes=5),
        gt=timedelta(0),
        description="how often months to close are looked for",
    )
    log_level: str = "info"
    otel_exporter_otlp_endpoint: str | None = Field(
        default=None, validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT"
    )

    @field_validator("stripe_api_key", "stripe_webhook_secret", mode="before")
    @classmethod
    def _empty_is_none(cls, secret: object) -> object:
        """A deployment that passes a variable on passes an empty one where it is not set."""
        return secret or None

    @field_validator("key_hmac_secret", "operator_token")
    @classmethod
    def _long_enough(cls, secret: SecretStr) -> SecretStr:
        if len(secret.get_secret_value()) < _SECRET_BYTES_MIN:
            raise ValueError(f"needs at least {_SECRET_BYTES_MIN} characters")
        return secret

    @property
    def site_pairs(self) -> list[tuple[str, str]]:
        """The sites as (region, site)."""
        pairs: list[tuple[str, str]] = []
        for site in self.sites:
            region, _, name = site.partition("/")
            pairs.append((region, name))
        return pairs


class MigrationSettings(BaseSettings):
    """Settings of `python -m busbar_billing.migrate`, the only user of the admin's credentials."""

    model_config = SettingsConfigDict(env_prefix="BUSBAR_", frozen=True)

    postgres_admin_dsn: SecretStr
    postgres_dsn: SecretStr | None = Field(
        default=None, description="the service's own; its user is given the service's role"
    )
    postgres_wait: timedelta = timedelta(minutes=1)
