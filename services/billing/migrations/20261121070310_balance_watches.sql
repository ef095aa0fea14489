-- migrate:up

-- What a tenant was last told of its balance, so that each crossing is told once.
CREATE TABLE balance_watches (
    tenant_id text PRIMARY KEY REFERENCES tenants (tenant_id),
    -- Below this it is told, 1e-9 of its currency; 0: never; NULL: as the operator's setting says.
    low_nanos bigint CHECK (low_nanos >= 0),
    level text NOT NULL DEFAULT 'fine' CHECK (level IN ('fine', 'low', 'exhausted')),
    told_nanos numeric(38, 0) NOT NULL DEFAULT 0, -- the balance when the level was reached
    changed_at timestamptz NOT NULL DEFAULT now()
);

GRANT SELECT, INSERT ON balance_watches TO busbar_billing_service;
GRANT UPDATE (low_nanos, level, told_nanos, changed_at) ON balance_watches
TO busbar_billing_service;

SELECT isolate_tenants();

-- migrate:down

DROP TABLE balance_watches;
