"""From what the use cases return to the admin API's JSON."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

from busbar_billing.adapters.http import schemas
from busbar_billing.adapters.postgres.reading import PostedUsage
from busbar_billing.adapters.postgres.tenants import Balance
from busbar_billing.domain.ledger import Posting
from busbar_billing.domain.prices import Price, PriceBook
from busbar_billing.domain.rating import Line
from busbar_billing.usecases.keys import StoredKey
from busbar_billing.usecases.tenants import PostedTransfer, Tenant

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(unix_ns: int) -> datetime:
    """A time as people read it."""
    return _EPOCH + timedelta(microseconds=unix_ns // 1000)


def show_tenant(tenant: Tenant) -> schemas.TenantAnswer:
    """A tenant."""
    return schemas.TenantAnswer(
        tenant_id=tenant.tenant_id,
        name=tenant.name,
        currency=tenant.currency,
        created_at=tenant.created_at,
    )


def show_balance(held: Balance) -> schemas.BalanceAnswer:
    """What a tenant holds."""
    return schemas.BalanceAnswer(
        tenant_id=held.tenant_id,
        currency=held.currency,
        balance_nanos=held.balance_nanos,
        available_nanos=held.available_nanos,
        held_nanos=held.held_nanos,
        owed_nanos=held.owed_nanos,
    )


def show_key(stored: StoredKey) -> schemas.KeyAnswer:
    """A key, without the key itself."""
    key = stored.key
    expires, previous = key.expires_unix_ms, key.previous
    return schemas.KeyAnswer(
        key_id=key.key_id,
        tenant_id=key.tenant_id,
        project_id=key.project_id,
        name=key.name,
        prefix=key.prefix,
        scopes=list(key.scopes),
        deployments=list(key.deployments),
        expires_at=None if expires is None else moment(expires * 1_000_000),
        created_at=stored.created_at,
        revoked_at=stored.revoked_at,
        last_used_at=_not_before(stored.created_at, stored.last_used_at),
        previous_secret=None
        if previous is None
        else schemas.PreviousSecretAnswer(
            prefix=previous.prefix, valid_until=moment(previous.until_unix_ms * 1_000_000)
        ),
    )


def _not_before(created_at: datetime, last_used_at: datetime | None) -> datetime | None:
    """Uses are noted by the minute that they fell into, which may have begun before the key."""
    return None if last_used_at is None else max(created_at, last_used_at)


def show_transfer(posted: PostedTransfer) -> schemas.TransferAnswer:
    """A transfer with its postings."""
    transfer = posted.transfer
    return schemas.TransferAnswer(
        transfer_id=str(transfer.transfer_id),
        kind=transfer.kind,
        tenant_id=transfer.tenant_id,
        request_id=f"req_{transfer.request_id.hex}" if transfer.request_id else None,
        reason=transfer.reason,
        posted_at=posted.posted_at,
        postings=[show_posting(posting) for posting in transfer.postings],
    )


def show_posting(posting: Posting) -> schemas.PostingAnswer:
    """What was added to an account."""
    return schemas.PostingAnswer(
        account=posting.account.kind,
        tenant_id=posting.account.tenant_id,
        amount_nanos=posting.amount_nanos,
        currency=posting.account.currency,
    )


def show_usage(posted: PostedUsage) -> schemas.UsageAnswer:
    """A billed request."""
    record = posted.record
    return schemas.UsageAnswer(
        request_id=f"req_{record.request_id.hex}",
        tenant_id=record.tenant_id,
        key_id=record.key_id,
        deployment=record.deployment,
        price_class=record.price_class,
        rated_class=posted.rated_class,
        api=record.api,
        outcome=record.outcome,
        admitted_at=moment(record.admitted_unix_ns),
        finished_at=moment(record.finished_unix_ns),
        input_tokens=record.input_tokens,
        cached_tokens=record.cached_tokens,
        output_tokens=record.output_tokens,
        request_bytes=record.request_bytes,
        response_bytes=record.response_bytes,
        compute_us=record.compute_us,
        node=record.node,
        attempt=record.attempt,
        gateway_id=record.gateway_id,
        trace_id=posted.trace_id,
        price_version=posted.price_version,
        amount_nanos=posted.amount_nanos,
        currency=posted.currency,
        transfer_id=str(posted.transfer_id),
        posted_at=posted.posted_at,
        voided=posted.voided,
        void_reason=posted.void_reason,
    )


def show_line(line: Line, price: Price) -> schemas.RatingLine:
    """One line of a rating by `price`."""
    return schemas.RatingLine(
        component=line.component,
        used_before=line.before if price.graduated else None,
        quantity=line.quantity,
        amount_nanos=line.price.amount_nanos,
        per_units=line.price.per_units,
        exact_nanos=line.exact_nanos,
    )


def show_book(book: PriceBook, *, in_force: bool) -> schemas.PricesAnswer:
    """A version of the price book."""
    until = book.effective_until_unix_ns
    classes = {
        name: {component: _show_price(price) for component, price in prices.items()}
        for name, prices in book.classes.items()
    }
    return schemas.PricesAnswer(
        version=book.version,
        currency=book.currency,
        tenant_id=book.tenant_id,
        effective_from=moment(book.effective_from_unix_ns),
        effective_until=None if until is None else moment(until),
        charge_quantum_nanos=book.quantum_nanos,
        note=book.note,
        in_force=in_force,
        classes=classes,
    )


def _show_price(price: Price) -> schemas.PriceEntry:
    return schemas.PriceEntry.model_validate(dataclasses.asdict(price))
