"""What a request can cost at most: price sheets as billing writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

FALLBACK_CLASS = "default"
SCALE = 10**12
"""Rates are integers over this, as in the ledger, so that both come to the same amount."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices of one class, each for one counted unit, in nanos over SCALE."""

    input_token: int = 0
    output_token: int = 0
    request: int = 0
    compute_us: int = 0
    byte: int = 0
    quantum_nanos: int = 1
    by_size: bool = field(init=False, compare=False, default=False)
    """Whether anything is paid for that no limit of a model bounds: compute or bytes."""
    _step: int = field(init=False, compare=False, repr=False, default=SCALE)
    """The quantum over SCALE."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_size", bool(self.compute_us or self.byte))
        object.__setattr__(self, "_step", SCALE * self.quantum_nanos)

    def cost_nanos(
        self, input_tokens: int, output_tokens: int, payload_bytes: int, compute_us: int
    ) -> int:
        """The most that the ledger charges for this, rounded up to its quantum."""
        exact = (
            self.request
            + input_tokens * self.input_token
            + output_tokens * self.output_token
            + payload_bytes * self.byte
            + compute_us * self.compute_us
        )
        return self.charged_nanos(exact)

    def charged_nanos(self, exact: int) -> int:
        """An amount in nanos over SCALE, rounded up to the ledger's quantum."""
        step = self._step
        return (exact + step - 1) // step * self.quantum_nanos


FREE = Rates()


@dataclass(frozen=True, slots=True)
class Sheet:
    """One version of the prices of everybody, or of one tenant."""

    version: int
    currency: str
    tenant_id: str
    effective_from_unix_ns: int
    effective_until_unix_ns: int
    """0 means until the next one."""
    classes: Mapping[str, Rates]


class PriceList:
    """Every sheet that can be in force; the choice is the ledger's."""

    def __init__(self, sheets: Iterable[Sheet] = ()) -> None:
        self._everybodys: dict[str, list[Sheet]] = {}
        """By currency, the newest first."""
        self._own: dict[str, dict[str, list[Sheet]]] = {}
        """Of tenants with prices of their own: by tenant, then likewise."""
        newest_first = sorted(sheets, key=lambda one: one.effective_from_unix_ns, reverse=True)
        for sheet in newest_first:
            own = self._own.setdefault(sheet.tenant_id, {}) if sheet.tenant_id else None
            lines = self._everybodys if own is None else own
            lines.setdefault(sheet.currency, []).append(sheet)

    def rates(self, tenant_id: str, currency: str, price_class: str, at_unix_ns: int) -> Rates:
        """What holds for a tenant at a time; nothing costs anything in an unknown currency,
        since nothing can be charged in it."""
        own = self._own.get(tenant_id)
        sheet = None if own is None else _in_force(own.get(currency, ()), at_unix_ns)
        if sheet is None:
            everybodys = self._everybodys.get(currency)
            if everybodys is None:
                return FREE
            sheet = everybodys[0]
            if sheet.effective_from_unix_ns > at_unix_ns:
                sheet = _begun(everybodys, at_unix_ns) or everybodys[-1]
        return sheet.classes.get(price_class) or sheet.classes.get(FALLBACK_CLASS, FREE)


def _in_force(newest_first: Sequence[Sheet], at_unix_ns: int) -> Sheet | None:
    sheet = _begun(newest_first, at_unix_ns)
    if sheet is None:
        return None
    until_unix_ns = sheet.effective_until_unix_ns
    return sheet if not until_unix_ns or at_unix_ns < until_unix_ns else None


def _begun(newest_first: Sequence[Sheet], at_unix_ns: int) -> Sheet | None:
    for sheet in newest_first:
        if sheet.effective_from_unix_ns <= at_unix_ns:
            return sheet
    return None
