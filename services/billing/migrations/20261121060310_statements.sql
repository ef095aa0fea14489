-- migrate:up

-- Who issues statements. Numbers are without gaps for each of them.
CREATE TABLE legal_entities (
    entity_id text PRIMARY KEY CHECK (entity_id ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 100),
    address text [] NOT NULL DEFAULT '{}' CHECK (cardinality(address) <= 6),
    tax_id text NOT NULL DEFAULT '',
    -- Begins every number, so it never changes.
    number_prefix text NOT NULL UNIQUE CHECK (number_prefix ~ '^[A-Z0-9]{1,10}$'),
    -- The tax that charges contain, in millionths of the net amount; named on every statement.
    tax_name text NOT NULL DEFAULT '' CHECK (char_length(tax_name) <= 50),
    tax_ppm integer NOT NULL DEFAULT 0 CHECK (tax_ppm BETWEEN 0 AND 1000000),
    tax_note text NOT NULL DEFAULT '' CHECK (char_length(tax_note) <= 300)
);

INSERT INTO legal_entities (entity_id, name, number_prefix) VALUES ('default', 'Busbar', 'BB');

-- To whom statements are addressed. A tenant without a row: its name, from the entity `default`.
CREATE TABLE billing_details (
    tenant_id text PRIMARY KEY REFERENCES tenants (tenant_id),
    entity_id text NOT NULL REFERENCES legal_entities (entity_id),
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 100),
    address text [] NOT NULL DEFAULT '{}' CHECK (cardinality(address) <= 6),
    tax_id text NOT NULL DEFAULT ''
);

-- Statements of a month and the credit notes that correct them.
CREATE TABLE statements (
    number text PRIMARY KEY,
    entity_id text NOT NULL REFERENCES legal_entities (entity_id),
    sequence bigint NOT NULL CHECK (sequence > 0),
    kind text NOT NULL CHECK (kind IN ('statement', 'credit_note')),
    tenant_id text NOT NULL REFERENCES tenants (tenant_id),
    period_start date NOT NULL CHECK (extract(DAY FROM period_start) = 1),
    -- A statement holds what is dated before its period's end, was posted before cut_at, and is on no
    -- earlier statement of the tenant.
    cut_at timestamptz NOT NULL,
    closing_nanos numeric(38, 0) NOT NULL, -- a credit note's: what it gives back
    corrects text REFERENCES statements (number),
    reference text CHECK (char_length(reference) BETWEEN 1 AND 200),
    transfer_id uuid,
    content jsonb NOT NULL,
    issued_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (entity_id, sequence),
    CONSTRAINT statements_credit_notes_correct CHECK (
        num_nonnulls(corrects, reference, transfer_id) = CASE kind WHEN 'credit_note' THEN 3 ELSE 0 END
    )
);

CREATE UNIQUE INDEX statements_one_a_month ON statements (tenant_id, period_start)
WHERE kind = 'statement';
CREATE UNIQUE INDEX statements_one_credit_note_a_reference ON statements (corrects, reference)
WHERE kind = 'credit_note';
CREATE INDEX statements_of_tenant ON statements (tenant_id, number);

-- The next number of its entity, which stays locked until the transaction ends: what is rolled back
-- leaves no gap, and nothing else can choose a number.
CREATE FUNCTION number_statement() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    prefix text;
BEGIN
    SELECT e.number_prefix INTO prefix
    FROM legal_entities AS e WHERE e.entity_id = new.entity_id FOR UPDATE;
    SELECT coalesce(max(s.sequence), 0) + 1 INTO new.sequence
    FROM statements AS s WHERE s.entity_id = new.entity_id;
    new.number := prefix || '-' || lpad(new.sequence::text, greatest(6, length(new.sequence::text)), '0');
    RETURN new;
END
$$;

CREATE TRIGGER statements_number
BEFORE INSERT ON statements
FOR EACH ROW EXECUTE FUNCTION number_statement();

CREATE TRIGGER statements_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON statements
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- A moment such that whatever was posted before it is committed, and whatever comes later says a later
-- one: the time is taken when a row is inserted, under the lock that this waits for.
ALTER TABLE transfers ALTER COLUMN posted_at SET DEFAULT clock_timestamp();

CREATE FUNCTION statement_cut() RETURNS timestamptz
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '5s' AS $$
BEGIN
    LOCK TABLE transfers IN SHARE MODE;
    RETURN clock_timestamp();
END
$$;

REVOKE ALL ON FUNCTION statement_cut() FROM public;
GRANT EXECUTE ON FUNCTION statement_cut() TO busbar_billing_service;
GRANT SELECT, INSERT ON legal_entities, billing_details, statements TO busbar_billing_service;
GRANT UPDATE (name, address, tax_id, tax_name, tax_ppm, tax_note) ON legal_entities
TO busbar_billing_service;
GRANT UPDATE (entity_id, name, address, tax_id) ON billing_details TO busbar_billing_service;

-- migrate:down

DROP FUNCTION statement_cut();
ALTER TABLE transfers ALTER COLUMN posted_at SET DEFAULT now();
DROP TABLE statements;
DROP FUNCTION number_statement();
DROP TABLE billing_details;
DROP TABLE legal_entities;
