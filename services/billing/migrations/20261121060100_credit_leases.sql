-- migrate:up

ALTER TABLE accounts DROP CONSTRAINT accounts_kind_check;
ALTER TABLE accounts ADD CONSTRAINT accounts_kind_check CHECK (
    kind IN (
        'tenant_available', 'tenant_held', 'tenant_receivable',
        'revenue', 'payments_clearing', 'rounding'
    )
) NOT VALID;
ALTER TABLE accounts VALIDATE CONSTRAINT accounts_kind_check;

ALTER TABLE transfers DROP CONSTRAINT transfers_kind_check;
ALTER TABLE transfers ADD CONSTRAINT transfers_kind_check CHECK (
    kind IN (
        'top_up', 'charge', 'void', 'correction',
        'lease_hold', 'lease_release', 'receivable_paid'
    )
) NOT VALID;
ALTER TABLE transfers VALIDATE CONSTRAINT transfers_kind_check;

-- Money of a tenant that a gateway may spend without asking. What is left of all open leases of a
-- tenant is what its account tenant_held holds.
CREATE TABLE leases (
    lease_id uuid PRIMARY KEY,
    tenant_id text NOT NULL REFERENCES tenants (tenant_id),
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    gateway_id text NOT NULL,
    run_id text NOT NULL, -- changes with every start of the gateway
    -- Totals, 1e-9 of the currency: moved in, given back by the gateway, charged.
    granted_nanos bigint NOT NULL CHECK (granted_nanos >= 0),
    returned_nanos bigint NOT NULL CHECK (returned_nanos >= 0),
    posted_nanos bigint NOT NULL CHECK (posted_nanos >= 0),
    opened_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL, -- unless it is renewed
    closing_at timestamptz, -- expired, or the gateway is done with it: nothing more is granted
    -- Last sequence of USAGE, read after closing_at; once that is posted the rest goes back.
    settles_at_sequence bigint,
    closed_at timestamptz,
    CONSTRAINT leases_never_overdrawn CHECK (granted_nanos >= returned_nanos + posted_nanos)
);

CREATE UNIQUE INDEX leases_one_of_each ON leases (tenant_id, gateway_id, run_id)
WHERE closing_at IS NULL;
CREATE INDEX leases_not_closed ON leases (tenant_id) WHERE closed_at IS NULL;
CREATE INDEX leases_to_expire ON leases (expires_at) WHERE closing_at IS NULL;
CREATE INDEX leases_to_close ON leases (closing_at)
WHERE closing_at IS NOT NULL AND closed_at IS NULL;

GRANT SELECT, INSERT ON leases TO busbar_billing_service;
GRANT UPDATE (
    granted_nanos, returned_nanos, posted_nanos, expires_at, closing_at, settles_at_sequence, closed_at
) ON leases TO busbar_billing_service;

-- The lease that a record was served from; NULL: straight from the balance.
ALTER TABLE usage_records ADD COLUMN lease_id uuid;

-- What tenants have outside of leases and what they owe, with a lock on the former until the
-- transaction ends: who takes money from a balance must have seen it.
CREATE FUNCTION lock_balances(tenant_ids text [])
RETURNS TABLE (tenant_id text, currency text, available_nanos numeric, receivable_nanos numeric)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT
        a.tenant_id, a.currency, b.balance_nanos,
        coalesce((
            SELECT owed.balance_nanos
            FROM accounts AS r JOIN account_balances AS owed USING (account_id)
            WHERE r.kind = 'tenant_receivable' AND r.tenant_id = a.tenant_id
            AND r.currency = a.currency
        ), 0)
    FROM accounts AS a
    JOIN account_balances AS b USING (account_id)
    WHERE a.kind = 'tenant_available' AND a.tenant_id = ANY(tenant_ids)
    ORDER BY a.account_id -- as project_balances() locks them
    FOR UPDATE OF b
$$;

-- migrate:down

DROP FUNCTION lock_balances(text []);
ALTER TABLE usage_records DROP COLUMN lease_id;
DROP TABLE leases;
ALTER TABLE transfers DROP CONSTRAINT transfers_kind_check;
ALTER TABLE transfers ADD CONSTRAINT transfers_kind_check CHECK (
    kind IN ('top_up', 'charge', 'void', 'correction')
) NOT VALID;
ALTER TABLE transfers VALIDATE CONSTRAINT transfers_kind_check;
ALTER TABLE accounts DROP CONSTRAINT accounts_kind_check;
ALTER TABLE accounts ADD CONSTRAINT accounts_kind_check CHECK (
    kind IN ('tenant_available', 'revenue', 'payments_clearing', 'rounding')
) NOT VALID;
ALTER TABLE accounts VALIDATE CONSTRAINT accounts_kind_check;
