-- migrate:up

-- Energy is booked for each site ("region/site").
ALTER TABLE accounts
ADD COLUMN site text,
ADD CONSTRAINT accounts_energy_of_a_site CHECK ((kind = 'energy_cost') = (site IS NOT NULL)),
DROP CONSTRAINT accounts_one_of_a_kind,
ADD CONSTRAINT accounts_one_of_a_kind UNIQUE NULLS NOT DISTINCT (kind, tenant_id, site, currency);

-- What a kilowatt-hour costs at a site, from effective_from until the next one; there are hours in
-- which it is below zero.
CREATE TABLE energy_prices (
    site text NOT NULL CHECK (site ~ '^[a-z0-9][a-z0-9_-]{0,62}/[a-z0-9][a-z0-9_-]{0,62}$'),
    effective_from timestamptz NOT NULL,
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    kwh_nanos bigint NOT NULL CHECK (kwh_nanos BETWEEN -1000000000000 AND 1000000000000),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (site, effective_from)
);

CREATE TRIGGER energy_prices_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON energy_prices
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

GRANT SELECT, INSERT ON energy_prices TO busbar_billing_service;

-- migrate:down

DROP TABLE energy_prices;
ALTER TABLE accounts
DROP CONSTRAINT accounts_one_of_a_kind,
DROP CONSTRAINT accounts_energy_of_a_site,
DROP COLUMN site,
ADD CONSTRAINT accounts_one_of_a_kind UNIQUE NULLS NOT DISTINCT (kind, tenant_id, currency);
