-- migrate:up

-- Every kind of every migration up to here, those of credit leases and energy included.
ALTER TABLE accounts DROP CONSTRAINT accounts_kind_check;
ALTER TABLE accounts ADD CONSTRAINT accounts_kind_check CHECK (
    kind IN (
        'tenant_available', 'tenant_held', 'tenant_receivable',
        'revenue', 'payments_clearing', 'rounding',
        'promotional_credit', 'energy_cost', 'energy_payable'
    )
);
ALTER TABLE transfers DROP CONSTRAINT transfers_kind_check;
ALTER TABLE transfers ADD CONSTRAINT transfers_kind_check CHECK (
    kind IN (
        'top_up', 'charge', 'void', 'correction',
        'lease_hold', 'lease_release', 'receivable_paid',
        'promotional_credit', 'promotional_expiry', 'refund', 'energy_cost'
    )
);

-- Money that we gave a tenant and that it must spend until expires_at. It is in the tenant's balance
-- like any other; what of it is spent, by which charge, is kept here.
CREATE TABLE promotional_credits (
    credit_id uuid PRIMARY KEY, -- the transfer that gave it
    tenant_id text NOT NULL REFERENCES tenants (tenant_id),
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    amount_nanos bigint NOT NULL CHECK (amount_nanos > 0),
    expires_at timestamptz NOT NULL
);

CREATE INDEX promotional_credits_of_tenant ON promotional_credits (tenant_id, credit_id);

-- Positive: a charge or the expiry took it. Negative: a void or a refund gave it back.
CREATE TABLE promotional_spending (
    transfer_id uuid NOT NULL,
    credit_id uuid NOT NULL REFERENCES promotional_credits (credit_id),
    request_id uuid, -- of the charge; NULL for the expiry
    amount_nanos bigint NOT NULL CHECK (amount_nanos <> 0),
    PRIMARY KEY (transfer_id, credit_id)
);

CREATE INDEX promotional_spending_of_request ON promotional_spending (request_id)
WHERE request_id IS NOT NULL;

-- What is left of each credit: a projection, kept by the triggers below and by nothing else.
CREATE TABLE promotional_unspent (
    credit_id uuid PRIMARY KEY REFERENCES promotional_credits (credit_id),
    tenant_id text NOT NULL,
    expires_at timestamptz NOT NULL,
    unspent_nanos bigint NOT NULL,
    amount_nanos bigint NOT NULL,
    CONSTRAINT promotional_unspent_of_what_was_given
    CHECK (unspent_nanos BETWEEN 0 AND amount_nanos)
) WITH (fillfactor = 50);

CREATE INDEX promotional_unspent_of_tenant ON promotional_unspent (tenant_id)
WHERE unspent_nanos > 0;
CREATE INDEX promotional_unspent_to_expire ON promotional_unspent (expires_at)
WHERE unspent_nanos > 0;

CREATE FUNCTION open_promotional_credits() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO promotional_unspent
    (credit_id, tenant_id, expires_at, unspent_nanos, amount_nanos)
    SELECT i.credit_id, i.tenant_id, i.expires_at, i.amount_nanos, i.amount_nanos
    FROM inserted AS i;
    RETURN NULL;
END
$$;

CREATE TRIGGER promotional_credits_open
AFTER INSERT ON promotional_credits
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION open_promotional_credits();

CREATE FUNCTION project_promotional_spending() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE promotional_unspent AS u SET unspent_nanos = u.unspent_nanos - spent.amount_nanos
    FROM (
        SELECT i.credit_id, sum(i.amount_nanos) AS amount_nanos FROM inserted AS i GROUP BY 1
    ) AS spent
    WHERE u.credit_id = spent.credit_id;
    RETURN NULL;
END
$$;

CREATE TRIGGER promotional_spending_project
AFTER INSERT ON promotional_spending
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION project_promotional_spending();

CREATE TRIGGER promotional_credits_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON promotional_credits
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TRIGGER promotional_spending_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON promotional_spending
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Credits with something left, first to expire first, locked until the transaction ends. Whoever
-- takes balances and credits takes the balances first.
CREATE FUNCTION lock_promotional_credits(tenant_ids text [])
RETURNS SETOF promotional_unspent
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT u.*
    FROM promotional_unspent AS u
    WHERE u.tenant_id = ANY(tenant_ids) AND u.unspent_nanos > 0
    ORDER BY u.tenant_id, u.expires_at, u.credit_id
    FOR UPDATE
$$;

-- What a tenant has outside of leases, locked until the transaction ends: who takes from it must have
-- seen it.
CREATE FUNCTION lock_available(of_tenant text, of_currency text) RETURNS numeric
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT b.balance_nanos
    FROM accounts AS a
    INNER JOIN account_balances AS b USING (account_id)
    WHERE a.kind = 'tenant_available' AND a.tenant_id = of_tenant AND a.currency = of_currency
    FOR UPDATE OF b
$$;

REVOKE ALL ON FUNCTION lock_promotional_credits(text []) FROM public;
REVOKE ALL ON FUNCTION lock_available(text, text) FROM public;
GRANT EXECUTE ON FUNCTION lock_promotional_credits(text []) TO busbar_billing_service;
GRANT EXECUTE ON FUNCTION lock_available(text, text) TO busbar_billing_service;
GRANT SELECT, INSERT ON promotional_credits, promotional_spending TO busbar_billing_service;
GRANT SELECT ON promotional_unspent TO busbar_billing_service;

-- migrate:down

DROP FUNCTION lock_available(text, text);
DROP FUNCTION lock_promotional_credits(text []);
DROP TABLE promotional_unspent;
DROP TABLE promotional_spending;
DROP TABLE promotional_credits;
DROP FUNCTION open_promotional_credits();
DROP FUNCTION project_promotional_spending();
