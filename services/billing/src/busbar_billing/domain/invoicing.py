"""Who issues statements and to whom they are addressed: what may stand on them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from busbar_errors import Rejected

from busbar_billing.domain.names import checked_name, checked_text
from busbar_billing.domain.statements import PPM, Tax

DEFAULT_ENTITY = "default"
ADDRESS_LINES_MAX, ADDRESS_LINE_MAX = 6, 100
TAX_ID_MAX, TAX_NAME_MAX, TAX_NOTE_MAX = 50, 50, 300

_ENTITY_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_NUMBER_PREFIX = re.compile(r"[A-Z0-9]{1,10}")

_NO_TAX = Tax()


@dataclass(frozen=True, slots=True)
class LegalEntity:
    """Who issues statements: numbers begin with `number_prefix`, which never changes."""

    entity_id: str
    name: str
    number_prefix: str
    address: tuple[str, ...] = ()
    tax_id: str = ""
    tax: Tax = _NO_TAX


@dataclass(frozen=True, slots=True)
class BillingDetails:
    """To whom a tenant's statements are addressed, and who issues them."""

    tenant_id: str
    name: str
    address: tuple[str, ...] = ()
    tax_id: str = ""
    entity_id: str = DEFAULT_ENTITY


def is_entity_id(text: str) -> bool:
    """Whether a legal entity could have this id at all."""
    return _ENTITY_ID.fullmatch(text) is not None


def checked_entity(entity: LegalEntity) -> LegalEntity:
    """The entity with its texts in composed form; raise Rejected for what no statement may show."""
    if not is_entity_id(entity.entity_id):
        raise Rejected(f"entity_id must match {_ENTITY_ID.pattern}")
    if not _NUMBER_PREFIX.fullmatch(entity.number_prefix):
        raise Rejected(f"number_prefix must match {_NUMBER_PREFIX.pattern}")
    return replace(
        entity,
        name=checked_name(entity.name),
        address=_checked_address(entity.address),
        tax_id=_checked_optional("tax_id", entity.tax_id, TAX_ID_MAX),
        tax=_checked_tax(entity.tax),
    )


def checked_details(details: BillingDetails) -> BillingDetails:
    """The details with their texts in composed form; raise Rejected as for entities."""
    return replace(
        details,
        name=checked_name(details.name),
        address=_checked_address(details.address),
        tax_id=_checked_optional("tax_id", details.tax_id, TAX_ID_MAX),
    )


def _checked_tax(tax: Tax) -> Tax:
    if not 0 <= tax.ppm <= PPM:
        raise Rejected(f"tax ppm must be between 0 and {PPM:,}, millionths of the net amount")
    if tax.ppm and not tax.name.strip():
        raise Rejected("a tax needs a name, such as VAT")
    return Tax(
        _checked_optional("tax name", tax.name, TAX_NAME_MAX),
        tax.ppm,
        _checked_optional("tax note", tax.note, TAX_NOTE_MAX),
    )


def _checked_address(lines: tuple[str, ...]) -> tuple[str, ...]:
    if len(lines) > ADDRESS_LINES_MAX:
        raise Rejected(f"an address has at most {ADDRESS_LINES_MAX} lines")
    return tuple(checked_text("address line", line, ADDRESS_LINE_MAX) for line in lines)


def _checked_optional(field: str, text: str, longest: int) -> str:
    return checked_text(field, text, longest) if text.strip() else ""
