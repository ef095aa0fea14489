"""Webhooks of tenants: what is told, how it is signed, and when it is tried again.

Signatures follow https://github.com/standard-webhooks/standard-webhooks, so that receivers
verify them with a library that exists.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeAlias

from busbar_errors import Conflict, Rejected

from busbar_billing.domain.ledger import Transfer, TransferKind
from busbar_billing.domain.names import checked_text

ENDPOINTS_PER_TENANT_MAX = 10
WAITING_PER_ENDPOINT_MAX = 1_000
"""Facts beyond these are not told to the endpoint; one that takes none is disabled before."""
ASKED_WAITING_MAX = 100
"""Pings and redeliveries are refused while so much waits."""
DESCRIPTION_MAX = 200
SALT_BYTES = 32
OVERLAP_MAX = timedelta(days=7)
"""For how long messages may be signed with the secret before a rotation, too."""
RETRY_AFTER_S = (5, 30, 120, 600, 1_800, 3_600, 7_200, 14_400, 28_800, 28_800)
"""Pauses between attempts: given up after 11 attempts, in a little less than 24 hours."""
JITTER = 0.2
DISABLE_AFTER = timedelta(days=3)
"""An endpoint is disabled when a message is given up and nothing went there for so long."""

_STATUS_GONE = 410
_SUCCESS = range(200, 300)
_REDIRECTION = range(300, 400)
_SECRET_LABEL = b"busbar webhook signing v1\x00"

JsonValue: TypeAlias = str | int | bool | None


class EventType(StrEnum):
    """What tenants can be told."""

    BALANCE_LOW = "balance.low"
    BALANCE_EXHAUSTED = "balance.exhausted"
    BUDGET_REACHED = "budget.reached"
    PAYMENT_SUCCEEDED = "payment.succeeded"
    PAYMENT_RETURNED = "payment.returned"
    CREDIT_GRANTED = "credit.granted"
    CHARGE_REFUNDED = "charge.refunded"
    STATEMENT_ISSUED = "statement.issued"
    CREDIT_NOTE_ISSUED = "credit_note.issued"
    WEBHOOK_DISABLED = "webhook.disabled"
    PING = "ping"


@dataclass(frozen=True, slots=True)
class Notice:
    """A fact for a tenant. Amounts in `data` are nanos of the currency beside them."""

    tenant_id: str
    type: EventType
    data: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a tenant wants to be told. `event_types` empty: of everything."""

    endpoint_id: str
    tenant_id: str
    url: str
    description: str
    event_types: tuple[EventType, ...]
    salt: bytes
    created_at: datetime
    previous_salt: bytes | None = None
    previous_until: datetime | None = None
    failing_since: datetime | None = None
    disabled_at: datetime | None = None
    disabled_reason: str = ""

    def salts_at(self, moment: datetime) -> list[bytes]:
        """What messages are signed with then: the present secret's, and an earlier one's."""
        if self.previous_salt is None or self.previous_until is None:
            return [self.salt]
        return [self.salt, self.previous_salt] if moment < self.previous_until else [self.salt]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one attempt. `status` None: there was no answer, `error` says why."""

    status: int | None
    error: str = ""

    @property
    def delivered(self) -> bool:
        """Whether the receiver took it."""
        return self.status in _SUCCESS

    @property
    def reason(self) -> str:
        """Why it did not, in words for the tenant."""
        if self.status is None or self.delivered:
            return self.error
        if self.status in _REDIRECTION:
            return f"status {self.status}: redirects are not followed"
        return f"status {self.status}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from an attempt that failed. `retry_in` None: the message is given up."""

    retry_in: timedelta | None
    disable: str = ""
    """Why the endpoint gets nothing any more; empty: it does."""


def after_failure(attempt: Attempt, number: int, failing_for: timedelta, luck: float) -> Verdict:
    """Decide what follows when attempt `number` (from 1) failed and nothing has gone to the
    endpoint for `failing_for`. `luck`, from 0 to 1, spreads those that failed together."""
    if attempt.status == _STATUS_GONE:
        return Verdict(None, "it answered 410 Gone")
    if number <= len(RETRY_AFTER_S):
        spread = 1 - JITTER + 2 * JITTER * luck
        return Verdict(timedelta(seconds=RETRY_AFTER_S[number - 1] * spread))
    if failing_for >= DISABLE_AFTER:
        return Verdict(None, f"nothing was delivered for {failing_for.days} days")
    return Verdict(None)


def signing_secret(service_secret: bytes, salt: bytes) -> bytes:
    """The secret of an endpoint, 32 bytes: in no table, and of no use for anything else."""
    return hmac.new(service_secret, _SECRET_LABEL + salt, hashlib.sha256).digest()


def secret_text(secret: bytes) -> str:
    """A secret as receivers configure it."""
    return "whsec_" + base64.b64encode(secret).decode()


def signed_headers(
    message_id: str, unix_s: int, payload: bytes, secrets: Sequence[bytes]
) -> dict[str, str]:
    """The headers by which receivers tell ours from forged and old messages."""
    signed = f"{message_id}.{unix_s}.".encode() + payload
    digests = [hmac.new(secret, signed, hashlib.sha256).digest() for secret in secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(unix_s),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(one).decode()}" for one in digests),
    }


def checked_description(text: str) -> str:
    """What people note of an endpoint; may be empty."""
    return checked_text("description", text, DESCRIPTION_MAX) if text.strip() else ""


def checked_event_types(types: Iterable[EventType]) -> tuple[EventType, ...]:
    """Types in their order and without repeats; pings come unasked."""
    wanted = set(types)
    if EventType.PING in wanted:
        raise Rejected("ping is sent when it is asked for; it cannot be chosen")
    return tuple(one for one in EventType if one in wanted)


def checked_overlap(until: datetime | None, now: datetime) -> datetime | None:
    """Until when the old secret signs, too; None: no longer. Raise Rejected beyond OVERLAP_MAX."""
    if until is None:
        return None
    if not now <= until <= now + OVERLAP_MAX:
        raise Rejected(f"old_valid_until must be within the next {OVERLAP_MAX.days} days")
    return until


def check_signs_on(endpoint: Endpoint, until: datetime | None, now: datetime) -> None:
    """Raise Conflict when a rotation with an overlap would end an earlier overlap before its time:
    messages are signed with two secrets at most. One without an overlap ends all old secrets."""
    if until is None or len(endpoint.salts_at(now)) == 1:
        return
    raise Conflict(
        f"messages to {endpoint.endpoint_id} are signed with the secret before, too, until "
        f"{endpoint.previous_until:%Y-%m-%dT%H:%M:%SZ}: rotate after that, or leave "
        "old_valid_until out to end every old secret now"
    )


_OF_TRANSFERS = {
    TransferKind.TOP_UP: EventType.PAYMENT_SUCCEEDED,
    TransferKind.PAYMENT_RETURNED: EventType.PAYMENT_RETURNED,
    TransferKind.PROMOTIONAL_CREDIT: EventType.CREDIT_GRANTED,
    TransferKind.REFUND: EventType.CHARGE_REFUNDED,
}


def notices_of(transfers: Iterable[Transfer]) -> list[Notice]:
    """What tenants are told of transfers. `amount_nanos`: added to what they have; negative was
    taken from it."""
    return [
        Notice(
            transfer.tenant_id,
            _OF_TRANSFERS[transfer.kind],
            {
                "tenant_id": transfer.tenant_id,
                "transfer_id": str(transfer.transfer_id),
                "request_id": f"req_{transfer.request_id.hex}" if transfer.request_id else None,
                "reference": transfer.reason,
                "amount_nanos": sum(line.amount_nanos for line in own),
                "currency": own[0].account.currency,
            },
        )
        for transfer in transfers
        if transfer.tenant_id is not None and transfer.kind in _OF_TRANSFERS
        if (own := [one for one in transfer.postings if one.account.tenant_id is not None])
    ]
