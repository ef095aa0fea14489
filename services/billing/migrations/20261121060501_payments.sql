-- migrate:up

ALTER TABLE transfers DROP CONSTRAINT transfers_kind_check;
ALTER TABLE transfers ADD CONSTRAINT transfers_kind_check CHECK (
    kind IN (
        'top_up', 'charge', 'void', 'correction',
        'lease_hold', 'lease_release', 'receivable_paid',
        'promotional_credit', 'promotional_expiry', 'refund', 'energy_cost',
        'payment_returned'
    )
);

-- What the payment provider told us, as it told it; also what we did not understand.
CREATE TABLE provider_events (
    event_id text PRIMARY KEY CHECK (char_length(event_id) BETWEEN 1 AND 255),
    type text NOT NULL CHECK (char_length(type) <= 255),
    payload jsonb NOT NULL,
    -- posted, stored, waiting, or why it was refused; empty until the same transaction says so.
    outcome text NOT NULL DEFAULT '',
    received_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX provider_events_by_time ON provider_events (received_at DESC, event_id);

-- What follows from the events. Totals, 1e-9 of the currency.
CREATE TABLE payments (
    reference text PRIMARY KEY CHECK (char_length(reference) BETWEEN 1 AND 255),
    tenant_id text REFERENCES tenants (tenant_id), -- NULL until an event said whose it is
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    paid_nanos bigint NOT NULL DEFAULT 0 CHECK (paid_nanos >= 0),
    refunded_nanos bigint NOT NULL DEFAULT 0 CHECK (refunded_nanos >= 0),
    lost_nanos bigint NOT NULL DEFAULT 0 CHECK (lost_nanos >= 0),
    posted_paid_nanos bigint NOT NULL DEFAULT 0 CHECK (posted_paid_nanos <= paid_nanos),
    posted_returned_nanos bigint NOT NULL DEFAULT 0 CHECK (
        posted_returned_nanos <= posted_paid_nanos
    ),
    changed_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX payments_of_tenant ON payments (tenant_id, changed_at);

GRANT SELECT, INSERT ON provider_events, payments TO busbar_billing_service;
GRANT UPDATE (outcome) ON provider_events TO busbar_billing_service;
GRANT UPDATE (
    tenant_id, paid_nanos, refunded_nanos, lost_nanos, posted_paid_nanos, posted_returned_nanos,
    changed_at
) ON payments TO busbar_billing_service;

-- migrate:down

DROP TABLE payments;
DROP TABLE provider_events;
ALTER TABLE transfers DROP CONSTRAINT transfers_kind_check;
ALTER TABLE transfers ADD CONSTRAINT transfers_kind_check CHECK (
    kind IN (
        'top_up', 'charge', 'void', 'correction',
        'lease_hold', 'lease_release', 'receivable_paid',
        'promotional_credit', 'promotional_expiry', 'refund', 'energy_cost'
    )
);
