"""Bodies of the admin API: rollouts."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from busbar_scheduler.domain.fleet import Deployment
from busbar_scheduler.domain.rollouts import HALF_PERCENT, RolledBack, Rollout

_DEFAULTS = Rollout()


class RolloutBody(BaseModel):
    """The terms on which a new version takes over."""

    model_config = ConfigDict(extra="forbid")

    canary_percent: Annotated[int, Field(ge=1, le=HALF_PERCENT, strict=True)] = Field(
        default=_DEFAULTS.canary_percent, description="share of requests that it begins with"
    )
    observe_s: Annotated[int, Field(ge=1, le=604_800, strict=True)] = Field(
        default=_DEFAULTS.observe_s, description="how long it is watched with each share"
    )
    max_error_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=_DEFAULTS.max_error_ratio,
        description="how much larger its share of failed requests may be",
    )
    max_latency_ratio: Annotated[float, Field(ge=1, le=100)] = Field(
        default=_DEFAULTS.max_latency_ratio,
        description="how many times as long its typical answer may take",
    )
    min_samples: Annotated[int, Field(ge=5, le=1_000_000, strict=True)] = Field(
        default=_DEFAULTS.min_samples,
        description="requests that each version has to have had before it is taken over or found "
        "slow; that it fails more may be sure after fewer",
    )
    ready_within_s: Annotated[int, Field(ge=1, le=86_400, strict=True)] = Field(
        default=_DEFAULTS.ready_within_s, description="how long its replicas may take to be ready"
    )

    def terms(self) -> Rollout:
        """As the domain has them."""
        return Rollout(**self.model_dump())


class CanaryView(BaseModel):
    """A version that is being tried."""

    bundle: str
    bundle_version: str
    phase: str = Field(description="observing, taking over, settling or leaving")
    percent: int = Field(description="share of the requests that it takes")
    reason: str = Field(description="what it waits for")
    never: str = Field(description="why an empty fleet could not hold it; empty when it could")


class RolledBackView(BaseModel):
    """A version that was tried and given up."""

    bundle: str
    reason: str
    at_unix_ms: int

    @classmethod
    def of(cls, back: RolledBack | None) -> RolledBackView | None:
        """As the API shows it."""
        if back is None:
            return None
        return cls(bundle=back.digest, reason=back.reason, at_unix_ms=back.at_unix_ms)


class RolloutView(BaseModel):
    """How new versions are tried, and what came of it."""

    terms: RolloutBody | None = Field(description="none: a new version takes over when it is ready")
    canary: CanaryView | None
    rolled_back: RolledBackView | None = Field(description="the version that was given up last")

    @classmethod
    def of(cls, deployment: Deployment, reason: str, never: str) -> RolloutView:
        """As the API shows it; `never` of the version on trial."""
        terms, canary = deployment.rollout, deployment.canary
        return cls(
            terms=RolloutBody.model_validate(terms, from_attributes=True) if terms else None,
            canary=CanaryView(
                bundle=canary.digest,
                bundle_version=canary.manifest.version,
                phase=str(canary.phase),
                percent=canary.share_percent,
                reason=reason,
                never=never,
            )
            if canary
            else None,
            rolled_back=RolledBackView.of(deployment.rolled_back),
        )
