"""What a request can cost at most: price sheets as billing writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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
        quantum = self.quantum_nanos
        return -(-exact // (SCALE * quantum)) * quantum


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
        self._lines: dict[tuple[str, str], list[Sheet]] = {}
        self._own: set[str] = set()
        """Tenants with prices of their own."""
        newest_first = sorted(sheets, key=lambda one: one.effective_from_unix_ns, reverse=True)
        for sheet in newest_first:
            self._lines.setdefault((sheet.currency, sheet.tenant_id), []).append(sheet)
            self._own.add(sheet.tenant_id)

    def rates(self, tenant_id: str, currency: str, price_class: str, at_unix_ns: int) -> Rates:
        """What holds for a tenant at a time; nothing costs anything in an unknown currency,
        since nothing can be charged in it."""
        sheet = self._in_force(tenant_id, currency, at_unix_ns)
        if sheet is None:
            return FREE
        return sheet.classes.get(price_class) or sheet.classes.get(FALLBACK_CLASS, FREE)

    def _in_force(self, tenant_id: str, currency: str, at_unix_ns: int) -> Sheet | None:
        own = self._lines.get((currency, tenant_id), ()) if tenant_id in self._own else ()
        for sheet in own:
            if sheet.effective_from_unix_ns <= at_unix_ns:
                if not sheet.effective_until_unix_ns or at_unix_ns < sheet.effective_until_unix_ns:
                    return sheet
                break
        everybodys = self._lines.get((currency, ""))
        if not everybodys:
            return None
        for sheet in everybodys:
            if sheet.effective_from_unix_ns <= at_unix_ns:
                return sheet
        return everybodys[-1]
