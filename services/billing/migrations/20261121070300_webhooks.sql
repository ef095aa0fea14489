-- migrate:up

-- Where tenants want to be told of facts. The signing secret is derived from the salt and a secret of
-- the service that is in no table, so that a copy of this one forges nothing.
CREATE TABLE webhook_endpoints (
    endpoint_id text PRIMARY KEY CHECK (endpoint_id ~ '^whe_[0-9a-f]{32}$'),
    tenant_id text NOT NULL REFERENCES tenants (tenant_id),
    url text NOT NULL CHECK (char_length(url) BETWEEN 1 AND 2000),
    description text NOT NULL DEFAULT '' CHECK (char_length(description) <= 200),
    event_types text [] NOT NULL DEFAULT '{}', -- empty: all of them
    salt bytea NOT NULL CHECK (octet_length(salt) = 32),
    -- The salt before the last rotation; messages are signed with both until previous_until.
    previous_salt bytea CHECK (octet_length(previous_salt) = 32),
    previous_until timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    failing_since timestamptz, -- first failure since the last success
    disabled_at timestamptz,
    disabled_reason text NOT NULL DEFAULT '',
    CONSTRAINT webhook_endpoints_previous_salt CHECK (
        num_nulls(previous_salt, previous_until) IN (0, 2)
    )
);

CREATE INDEX webhook_endpoints_of_tenant ON webhook_endpoints (tenant_id, endpoint_id);

-- The outbox: written in the transaction of the fact that a message tells, if anybody wants to know.
CREATE TABLE webhook_messages (
    message_id text PRIMARY KEY DEFAULT 'msg_' || replace(uuidv7()::text, '-', ''),
    tenant_id text NOT NULL REFERENCES tenants (tenant_id),
    type text NOT NULL CHECK (char_length(type) BETWEEN 1 AND 100),
    payload text NOT NULL CHECK (octet_length(payload) <= 65536), -- JSON, sent as it stands here
    occurred_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX webhook_messages_by_time ON webhook_messages (occurred_at);

-- One message on its way to one endpoint.
CREATE TABLE webhook_deliveries (
    delivery_id text PRIMARY KEY DEFAULT 'whd_' || replace(uuidv7()::text, '-', ''),
    message_id text NOT NULL REFERENCES webhook_messages (message_id) ON DELETE CASCADE,
    endpoint_id text NOT NULL REFERENCES webhook_endpoints (endpoint_id) ON DELETE CASCADE,
    tenant_id text NOT NULL REFERENCES tenants (tenant_id),
    state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'failed')),
    attempts integer NOT NULL DEFAULT 0 CHECK (attempts >= 0), -- since it was last asked for
    -- While somebody is at it: when others may take it over.
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    claim_id uuid, -- who took it last; nobody else may say what became of it
    last_attempt_at timestamptz,
    last_status integer,
    last_error text NOT NULL DEFAULT '',
    concluded_at timestamptz,
    UNIQUE (message_id, endpoint_id)
);

CREATE INDEX webhook_deliveries_due ON webhook_deliveries (next_attempt_at)
WHERE state = 'pending';
CREATE INDEX webhook_deliveries_of_endpoint ON webhook_deliveries (endpoint_id, delivery_id);
CREATE INDEX webhook_deliveries_waiting ON webhook_deliveries (endpoint_id)
WHERE state = 'pending';

GRANT SELECT, INSERT, DELETE ON webhook_endpoints, webhook_messages, webhook_deliveries
TO busbar_billing_service;
GRANT UPDATE (
    url, description, event_types, salt, previous_salt, previous_until,
    failing_since, disabled_at, disabled_reason
) ON webhook_endpoints TO busbar_billing_service;
GRANT UPDATE (
    state, attempts, next_attempt_at, claim_id, last_attempt_at, last_status, last_error, concluded_at
) ON webhook_deliveries TO busbar_billing_service;

-- migrate:down

DROP TABLE webhook_deliveries;
DROP TABLE webhook_messages;
DROP TABLE webhook_endpoints;
