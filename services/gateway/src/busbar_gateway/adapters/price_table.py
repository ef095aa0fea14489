"""Price sheets in memory, filled by watching the bucket that billing writes."""

from __future__ import annotations

import structlog
from busbar_contracts.billing.v1.prices_pb2 import ClassCeiling, PriceComponent, PriceSheet
from busbar_messaging import topology
from busbar_messaging.bucket_changes import Change, Current, Deleted
from busbar_messaging.watching import follow
from google.protobuf.message import DecodeError
from nats.aio.client import Client

from busbar_gateway.domain.prices import SCALE, PriceList, Rates, Sheet

log = structlog.get_logger()

_MICRO = 1_000_000
_FIELDS = {
    PriceComponent.PRICE_COMPONENT_INPUT_TOKEN: ("input_token", 1),
    PriceComponent.PRICE_COMPONENT_OUTPUT_TOKEN: ("output_token", 1),
    PriceComponent.PRICE_COMPONENT_REQUEST: ("request", 1),
    PriceComponent.PRICE_COMPONENT_COMPUTE_SECOND: ("compute_us", _MICRO),
    PriceComponent.PRICE_COMPONENT_MEGABYTE: ("byte", _MICRO),
}
"""Cached tokens never cost more than input tokens, which are reserved for."""


class PriceTable:
    """All prices that hold now or will. Keeps its contents while the bus is away."""

    def __init__(self) -> None:
        self._sheets: dict[str, Sheet] = {}
        self.current = PriceList()
        self.read_once = False

    def apply(self, change: Change) -> None:
        """Take one change of the bucket."""
        if isinstance(change, Current):
            self.read_once = True
            return
        if isinstance(change, Deleted):
            self._sheets.pop(change.key, None)
        else:
            try:
                self._sheets[change.key] = read_sheet(PriceSheet.FromString(change.value))
            except DecodeError:
                log.warning("unreadable prices", name=change.key)
                return
        self.current = PriceList(self._sheets.values())

    async def follow(self, client: Client) -> None:
        """Keep up with the bucket, for ever."""
        async for change in follow(client, topology.PRICES.name):
            self.apply(change)


def read_sheet(sheet: PriceSheet) -> Sheet:
    """Translate one sheet."""
    quantum = max(1, sheet.charge_quantum_nanos)
    return Sheet(
        version=sheet.version,
        currency=sheet.currency,
        tenant_id=sheet.tenant_id,
        effective_from_unix_ns=sheet.effective_from_unix_ns,
        effective_until_unix_ns=sheet.effective_until_unix_ns,
        classes={one.price_class: _rates(one, quantum) for one in sheet.classes},
    )


def _rates(listed: ClassCeiling, quantum_nanos: int) -> Rates:
    found: dict[str, int] = {}
    for one in listed.components:
        if one.component in _FIELDS:
            name, counted = _FIELDS[one.component]
            divisor = max(1, one.per_units) * counted
            found[name] = -(-one.amount_nanos * SCALE // divisor)
    return Rates(**found, quantum_nanos=quantum_nanos)
