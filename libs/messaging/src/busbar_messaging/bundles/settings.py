"""Whose seals a service trusts, from the environment."""

from __future__ import annotations

from functools import cached_property

from pydantic import Field, field_validator

from busbar_messaging.bundles.sealing import TrustedKeys
from busbar_messaging.connection import BusSettings


class BundleKeySettings(BusSettings):
    """BUSBAR_BUNDLE_PUBLISHERS and _APPROVERS: public keys as JSON lists of 64 hex digits.

    Without any, no bundle is taken.
    """

    bundle_publishers: list[str] = Field(default=[], description="vouch for bundles of data")
    bundle_approvers: list[str] = Field(default=[], description="also approve code in bundles")

    @field_validator("bundle_publishers", "bundle_approvers")
    @classmethod
    def _keys(cls, keys: list[str]) -> list[str]:
        TrustedKeys.of(keys, [])
        return keys

    @cached_property
    def trusted(self) -> TrustedKeys:
        """The same, ready for use."""
        return TrustedKeys.of(self.bundle_publishers, self.bundle_approvers)
