"""A statement's charges as FOCUS 1.2 cost and usage (https://focus.finops.org), in CSV.

One row for each line of usage, rounding or correction; the sum of BilledCost is
what the statement charged. Payments and credits are not charges and are left out.
A credit note has no rows: what it gives back is a correction on the statement of the
month in which it was issued, and who adds up all documents must find it once.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from datetime import datetime
from decimal import Decimal, localcontext

from busbar_billing.adapters.documents.layout import amount
from busbar_billing.adapters.documents.spreadsheet import safe_cell
from busbar_billing.domain.prices import Component
from busbar_billing.domain.statements import CHARGING, Line, Section
from busbar_billing.usecases.statements import Issued

COLUMNS = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingAccountType",
    "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory",
    "ChargeClass", "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd",
    "ChargePeriodStart", "CommitmentDiscountStatus", "ConsumedQuantity", "ConsumedUnit",
    "ContractedCost", "ContractedUnitPrice", "EffectiveCost", "InvoiceId", "InvoiceIssuerName",
    "ListCost", "ListUnitPrice", "PricingCategory", "PricingCurrency",
    "PricingCurrencyContractedUnitPrice", "PricingCurrencyEffectiveCost",
    "PricingCurrencyListUnitPrice", "PricingQuantity", "PricingUnit", "ProviderName",
    "PublisherName", "ResourceId", "ResourceName", "ResourceType", "ServiceCategory",
    "ServiceName", "ServiceSubcategory", "SkuId", "SkuMeter", "SkuPriceDetails", "SkuPriceId",
    "SubAccountId", "SubAccountName", "SubAccountType", "Tags",
)  # fmt: skip
_UNITS = {
    Component.INPUT_TOKEN: "Tokens",
    Component.OUTPUT_TOKEN: "Tokens",
    Component.CACHED_TOKEN: "Tokens",
    Component.REQUEST: "Requests",
    Component.COMPUTE_SECOND: "Seconds",
    Component.MEGABYTE: "MB",
}
_NANO = Decimal(10) ** -9


def render_focus(issued: Issued) -> bytes:
    """UTF-8; empty fields are null."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    lines = () if issued.corrects else issued.statement.lines
    for line in lines:
        if line.section in CHARGING:
            fields = {**_about(issued), **_charge(line), **_measured(line)}
            writer.writerow([fields.get(column, "") for column in COLUMNS])
    return text.getvalue().encode()


def _about(issued: Issued) -> dict[str, str]:
    month = issued.statement.month
    issuer = _ascii(issued.issuer.name)
    return {
        "BillingAccountId": issued.customer.party_id,
        "BillingAccountName": _ascii(issued.customer.name),
        "BillingAccountType": "Tenant",
        "BillingCurrency": issued.statement.currency,
        "BillingPeriodStart": _moment(month.starts_at),
        "BillingPeriodEnd": _moment(month.ends_at),
        "ChargePeriodStart": _moment(month.starts_at),
        "ChargePeriodEnd": _moment(month.ends_at),
        "InvoiceId": issued.number,
        "InvoiceIssuerName": issuer,
        "PricingCurrency": issued.statement.currency,
        "ProviderName": issuer,
        "PublisherName": issuer,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Inference",
        "ServiceSubcategory": "Generative AI",
        "ChargeFrequency": "Usage-Based",
    }


def _charge(line: Line) -> dict[str, str]:
    cost = amount(-line.amount_nanos, grouping="")
    usage = line.section in {Section.USAGE, Section.LATE_USAGE}
    category = "Credit"
    if usage:
        category = "Usage" if line.component else "Adjustment"
    subject = f"{line.model}: {line.text}" if line.model else line.text
    late = " (used earlier)" if line.section is Section.LATE_USAGE else ""
    return {
        "BilledCost": cost,
        "EffectiveCost": cost,
        "ListCost": cost,
        "ContractedCost": cost,
        "PricingCurrencyEffectiveCost": cost,
        "ChargeCategory": category,
        "ChargeClass": "",
        "ChargeDescription": safe_cell(subject + late),
        "ResourceId": line.model or "",
        "ResourceName": line.model or "",
        "ResourceType": "Model" if line.model else "",
    }


def _measured(line: Line) -> dict[str, str]:
    """What only usage has. List and contracted cost are exact, so that they are price times
    quantity; the billed one is rounded to a billionth of the currency."""
    component, quantity, price_nanos = line.component, line.quantity, line.price_nanos
    if component is None or quantity is None or price_nanos is None or line.per_units is None:
        return {}
    with localcontext(prec=60):
        consumed = Decimal(quantity) / component.units_per_quantity
        priced = consumed / line.per_units
        price = price_nanos * _NANO
        exact = _plain(price * priced)
    unit, unit_price = _UNITS[component], _plain(price)
    sku = f"{line.model}.{component.value}"
    return {
        "ConsumedQuantity": _plain(consumed),
        "ConsumedUnit": unit,
        "PricingQuantity": _plain(priced),
        "PricingUnit": unit if line.per_units == 1 else f"{line.per_units} {unit}",
        "PricingCategory": "Standard",
        "ListUnitPrice": unit_price,
        "ContractedUnitPrice": unit_price,
        "PricingCurrencyListUnitPrice": unit_price,
        "PricingCurrencyContractedUnitPrice": unit_price,
        "ListCost": exact,
        "ContractedCost": exact,
        "SkuId": sku,
        "SkuMeter": component.value,
        "SkuPriceId": f"{sku}.{price_nanos}.{line.per_units}",
    }


def _ascii(name: str) -> str:
    """FOCUS wants names in ASCII: without accents, "?" for what has no such letter."""
    letters = (one for one in unicodedata.normalize("NFKD", name) if not unicodedata.combining(one))
    return safe_cell("".join(letters).encode("ascii", "replace").decode())


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _plain(number: Decimal) -> str:
    """Without exponent and trailing zeros."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
