"""What moves money because a person or a payment says so is vouched for, so that nobody who can
write to the database can make it up: with a key that is not in the database."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable

from busbar_billing.domain.ledger import Transfer, TransferKind
from busbar_billing.domain.prices import Price, PriceBook

_PURPOSE = b"busbar warrants"
VOUCHED_KINDS = frozenset(
    {
        TransferKind.TOP_UP,
        TransferKind.PAYMENT_RETURNED,
        TransferKind.PROMOTIONAL_CREDIT,
        TransferKind.PROMOTIONAL_EXPIRY,
        TransferKind.PROMOTIONAL_WITHDRAWAL,
        TransferKind.REFUND,
        TransferKind.CORRECTION,
    }
)
"""Any other follows from a usage record, a lease or measured work, and is compared with that; a
void from what a gateway took back, which is vouched for itself."""


def warrant_key(secret: str) -> bytes:
    """A key for warrants only, from a secret that has other uses."""
    return hmac.digest(secret.encode(), _PURPOSE, hashlib.sha256)


def warrant(key: bytes, subject: str, said: object) -> bytes:
    """What vouches for a subject that says this, and nothing else."""
    text = json.dumps([subject, said], sort_keys=True, separators=(",", ":"))
    return hmac.digest(key, text.encode(), hashlib.sha256)


def is_vouched(key: bytes, subject: str, said: object, kept: bytes | None) -> bool:
    """Whether the warrant that is kept is of this."""
    return kept is not None and hmac.compare_digest(kept, warrant(key, subject, said))


def transfer_subject(transfer_id: object) -> str:
    """What the warrant of a transfer is kept under."""
    return f"transfer {transfer_id}"


def transfer_says(
    *,
    kind: str,
    idempotency_key: str,
    tenant_id: str | None,
    request_id: object,
    reason: str,
    lines: Iterable[tuple[str | None, str | None, str, int]],
) -> object:
    """All of a transfer; its lines as kind and tenant of the account, currency, nanos."""
    request = str(request_id) if request_id else None
    return [kind, idempotency_key, tenant_id, request, reason, sorted(map(str, lines))]


def said_by(transfer: Transfer) -> object:
    """All of a transfer that is to be posted."""
    return transfer_says(
        kind=transfer.kind.value,
        idempotency_key=transfer.idempotency_key,
        tenant_id=transfer.tenant_id,
        request_id=transfer.request_id,
        reason=transfer.reason,
        lines=(
            (line.account.kind.value, line.account.tenant_id, line.account.currency, nanos)
            for line in transfer.postings
            for nanos in (line.amount_nanos,)
        ),
    )


def void_subject(request_id: object) -> str:
    """What the warrant for taking the charge of a request back is kept under."""
    return f"void {request_id}"


def void_says(tenant_id: str, reason: str) -> object:
    """All that is kept of what a gateway took back."""
    return [tenant_id, reason]


def statement_subject(number: str) -> str:
    """What the warrant of a statement or credit note is kept under."""
    return f"statement {number}"


def statement_says(tenant_id: str, period: object, closing_nanos: int, content: object) -> object:
    """All of a statement or credit note."""
    return [tenant_id, str(period), closing_nanos, content]


def prices_subject(version: int) -> str:
    """What the warrant of a version of the price book is kept under."""
    return f"price book {version}"


def prices_say(book: PriceBook) -> object:
    """All of a version, when it was published included."""
    head = [
        book.currency,
        book.tenant_id,
        book.effective_from_unix_ns,
        book.effective_until_unix_ns,
        book.quantum_nanos,
        book.note,
        book.created_unix_ns,
    ]
    classes = {
        name: {component.value: _price_says(price) for component, price in prices.items()}
        for name, prices in book.classes.items()
    }
    return [*head, classes]


def _price_says(price: Price) -> object:
    tiers = [[tier.above_units, tier.amount_nanos, tier.per_units] for tier in price.tiers]
    return [price.amount_nanos, price.per_units, price.free_units, tiers]
