-- migrate:up

-- The inbox: one row per billable request, whose primary key is what makes a repeat harmless.
CREATE TABLE usage_records (
    request_id uuid PRIMARY KEY, -- UUIDv7: ordered by admission
    tenant_id text NOT NULL REFERENCES tenants (tenant_id),
    key_id text NOT NULL,
    deployment text NOT NULL,
    price_class text NOT NULL,
    api text NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('completed', 'abandoned')),
    admitted_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    input_tokens bigint NOT NULL CHECK (input_tokens >= 0),
    output_tokens bigint NOT NULL CHECK (output_tokens >= 0),
    request_bytes bigint NOT NULL CHECK (request_bytes >= 0),
    response_bytes bigint NOT NULL CHECK (response_bytes >= 0),
    compute_us bigint NOT NULL CHECK (compute_us >= 0),
    node text NOT NULL,
    attempt integer NOT NULL,
    gateway_id text NOT NULL,
    trace_id text NOT NULL, -- 32 hex digits; empty when not sampled
    -- How it was rated: with these prices, to this amount, posted as this transfer. rated_class
    -- differs from price_class when the book did not have the latter.
    price_version bigint NOT NULL REFERENCES price_books (version),
    rated_class text NOT NULL,
    amount_nanos bigint NOT NULL CHECK (amount_nanos >= 0),
    currency text NOT NULL,
    transfer_id uuid NOT NULL,
    posted_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX usage_records_of_tenant ON usage_records (tenant_id, request_id);

-- Records taken back. May be here before the record is.
CREATE TABLE usage_voids (
    request_id uuid PRIMARY KEY,
    tenant_id text NOT NULL,
    reason text NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now()
);

CREATE TRIGGER usage_records_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON usage_records
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TRIGGER usage_voids_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON usage_voids
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

GRANT SELECT, INSERT ON usage_records, usage_voids TO busbar_billing_service;

-- migrate:down

DROP TABLE usage_voids;
DROP TABLE usage_records;
