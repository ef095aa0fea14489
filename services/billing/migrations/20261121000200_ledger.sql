-- migrate:up

CREATE TABLE accounts (
    account_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL CHECK (
        kind IN ('tenant_available', 'revenue', 'payments_clearing', 'rounding')
    ),
    -- Set for the kinds that belong to a tenant, and only for those.
    tenant_id text REFERENCES tenants (tenant_id),
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    CONSTRAINT accounts_owned_by_tenant CHECK (
        starts_with(kind, 'tenant_') = (tenant_id IS NOT NULL)
    ),
    CONSTRAINT accounts_one_of_a_kind UNIQUE NULLS NOT DISTINCT (kind, tenant_id, currency)
);

-- The journal. Positive adds to an account, negative takes from it; every transfer sums to zero.
CREATE TABLE transfers (
    transfer_id uuid PRIMARY KEY, -- UUIDv7, so that its order is the order of posting
    kind text NOT NULL CHECK (kind IN ('top_up', 'charge', 'void', 'correction')),
    -- What makes a repeat recognisable: charge:<request id>, top_up:<tenant>:<reference>, ...
    idempotency_key text NOT NULL UNIQUE CHECK (char_length(idempotency_key) BETWEEN 1 AND 400),
    tenant_id text REFERENCES tenants (tenant_id),
    request_id uuid,
    reason text NOT NULL DEFAULT '',
    posted_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX transfers_of_tenant ON transfers (tenant_id, transfer_id);
CREATE INDEX transfers_of_request ON transfers (request_id) WHERE request_id IS NOT NULL;

-- Postings have no foreign keys, because one checked per row costs more than the row. Nothing in the
-- tables referred to is ever deleted, so it is the same to check a statement's rows together, once,
-- when they are inserted, as the triggers below do (Postgres fires them in the order of their names).
CREATE TABLE postings (
    transfer_id uuid NOT NULL,
    line smallint NOT NULL CHECK (line >= 0),
    account_id bigint NOT NULL,
    currency text NOT NULL,
    amount_nanos bigint NOT NULL, -- 1e-9 of the currency
    PRIMARY KEY (transfer_id, line)
);

CREATE INDEX postings_of_account ON postings (account_id, transfer_id);

CREATE FUNCTION require_known_transfers_and_accounts() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    stray record;
BEGIN
    SELECT p.transfer_id, p.account_id, p.currency INTO stray
    FROM inserted AS p
    LEFT JOIN accounts AS a ON a.account_id = p.account_id AND a.currency = p.currency
    LEFT JOIN transfers AS t ON t.transfer_id = p.transfer_id
    WHERE a.account_id IS NULL OR t.transfer_id IS NULL
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'posting of transfer %: no such transfer, or account % does not hold %',
            stray.transfer_id, stray.account_id, stray.currency
            USING ERRCODE = 'foreign_key_violation';
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER postings_1_refer_to_known
AFTER INSERT ON postings
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION require_known_transfers_and_accounts();

-- Every transfer sums to zero per currency when its transaction commits. A statement whose postings
-- sum to zero by themselves keeps it so; only the others are looked at again, at commit.
CREATE TABLE unsettled_transfers (
    unsettled_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    transfer_id uuid NOT NULL
);

CREATE FUNCTION note_unsettled_transfers() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO unsettled_transfers (transfer_id)
    SELECT p.transfer_id
    FROM inserted AS p
    GROUP BY p.transfer_id, p.currency
    HAVING sum(p.amount_nanos) <> 0;
    RETURN NULL;
END
$$;

CREATE TRIGGER postings_2_note_unsettled
AFTER INSERT ON postings
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION note_unsettled_transfers();

CREATE FUNCTION require_transfer_sums_to_zero() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    off record;
BEGIN
    SELECT p.currency, sum(p.amount_nanos) AS amount_nanos INTO off
    FROM postings AS p
    WHERE p.transfer_id = new.transfer_id
    GROUP BY p.currency
    HAVING sum(p.amount_nanos) <> 0
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'transfer % does not sum to zero: % nanos of % are left over',
            new.transfer_id, off.amount_nanos, off.currency
            USING ERRCODE = 'check_violation', CONSTRAINT = 'transfers_sum_to_zero';
    END IF;
    DELETE FROM unsettled_transfers WHERE unsettled_id = new.unsettled_id;
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER transfers_sum_to_zero
AFTER INSERT ON unsettled_transfers
DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION require_transfer_sums_to_zero();

-- Balances: a projection of the journal, kept by the trigger below and by nothing else. Each statement
-- moves each account once, so that the accounts which every charge touches are no bottleneck.
CREATE TABLE account_balances (
    account_id bigint PRIMARY KEY REFERENCES accounts (account_id),
    balance_nanos numeric(38, 0) NOT NULL
) WITH (fillfactor = 50);

CREATE FUNCTION project_balances() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO account_balances AS held (account_id, balance_nanos)
    SELECT p.account_id, sum(p.amount_nanos)
    FROM inserted AS p
    GROUP BY p.account_id
    ORDER BY p.account_id -- one order for everybody: no deadlocks
    ON CONFLICT (account_id)
    DO UPDATE SET balance_nanos = held.balance_nanos + excluded.balance_nanos;
    RETURN NULL;
END
$$;

CREATE TRIGGER postings_3_project_balances
AFTER INSERT ON postings
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION project_balances();

CREATE FUNCTION refuse_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on %: it is append-only; correct it with a new transfer', tg_op, tg_table_name
        USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER transfers_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON transfers
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TRIGGER postings_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON postings
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

GRANT SELECT, INSERT ON accounts, transfers, postings TO busbar_billing_service;
GRANT SELECT ON account_balances TO busbar_billing_service;

-- migrate:down

DROP TABLE account_balances;
DROP TABLE unsettled_transfers;
DROP TABLE postings;
DROP TABLE transfers;
DROP TABLE accounts;
DROP FUNCTION project_balances();
DROP FUNCTION require_known_transfers_and_accounts();
DROP FUNCTION note_unsettled_transfers();
DROP FUNCTION require_transfer_sums_to_zero();
DROP FUNCTION refuse_change();
