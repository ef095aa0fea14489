-- migrate:up

-- Prices of one tenant alone take the place of everybody's while they last.
ALTER TABLE price_books
ADD COLUMN tenant_id text REFERENCES tenants (tenant_id),
ADD COLUMN effective_until timestamptz,
ADD CONSTRAINT price_books_end_after_they_begin CHECK (effective_until > effective_from),
-- Everybody's prices end when the next ones begin, so that there is never a time without.
ADD CONSTRAINT price_books_end_for_one_tenant CHECK (
    effective_until IS NULL OR tenant_id IS NOT NULL
),
DROP CONSTRAINT price_books_currency_effective_from_key,
ADD CONSTRAINT price_books_begin_alone
UNIQUE NULLS NOT DISTINCT (currency, tenant_id, effective_from);

ALTER TABLE prices
DROP CONSTRAINT prices_component_check,
ADD CONSTRAINT prices_component_check CHECK (
    component IN (
        'input_token', 'output_token', 'cached_token', 'request', 'compute_second', 'megabyte'
    )
),
-- Units of a calendar month that cost nothing.
ADD COLUMN free_units bigint NOT NULL DEFAULT 0 CHECK (free_units BETWEEN 0 AND 1000000000000000);

-- Graduated: amount_nanos buys per_units of the units of a month above above_units.
CREATE TABLE price_tiers (
    version bigint NOT NULL,
    price_class text NOT NULL,
    component text NOT NULL,
    above_units bigint NOT NULL CHECK (above_units BETWEEN 1 AND 1000000000000000),
    amount_nanos bigint NOT NULL CHECK (amount_nanos BETWEEN 0 AND 1000000000000000),
    per_units bigint NOT NULL CHECK (per_units IN (1, 1000, 1000000)),
    PRIMARY KEY (version, price_class, component, above_units),
    FOREIGN KEY (version, price_class, component)
    REFERENCES prices (version, price_class, component)
);

CREATE TRIGGER price_tiers_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON price_tiers
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- What was used of a calendar month (UTC, by admission) where a price has tiers or an allowance,
-- counted as in usage records: tokens, requests, microseconds, bytes. A projection: the sum of
-- `consumed` of the month's records that are not voided.
CREATE TABLE monthly_use (
    tenant_id text NOT NULL REFERENCES tenants (tenant_id),
    month date NOT NULL CHECK (extract(DAY FROM month) = 1),
    price_class text NOT NULL,
    component text NOT NULL,
    quantity numeric(38, 0) NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, month, price_class, component)
) WITH (fillfactor = 50);

ALTER TABLE usage_records
ADD COLUMN cached_tokens bigint NOT NULL DEFAULT 0
CHECK (cached_tokens BETWEEN 0 AND input_tokens),
-- Where the price has tiers or an allowance: {component: {"before": …, "quantity": …}}, so that
-- whoever rates the record again comes to the same amount.
ADD COLUMN consumed jsonb;

GRANT SELECT, INSERT ON price_tiers TO busbar_billing_service;
GRANT SELECT, INSERT, UPDATE (quantity) ON monthly_use TO busbar_billing_service;

-- migrate:down

ALTER TABLE usage_records DROP COLUMN consumed, DROP COLUMN cached_tokens;
DROP TABLE monthly_use;
DROP TABLE price_tiers;
ALTER TABLE prices
DROP COLUMN free_units,
DROP CONSTRAINT prices_component_check,
ADD CONSTRAINT prices_component_check CHECK (
    component IN ('input_token', 'output_token', 'request', 'compute_second', 'megabyte')
) NOT VALID;
ALTER TABLE price_books
DROP CONSTRAINT price_books_begin_alone,
DROP CONSTRAINT price_books_end_for_one_tenant,
DROP COLUMN effective_until,
DROP COLUMN tenant_id,
ADD CONSTRAINT price_books_currency_effective_from_key UNIQUE (currency, effective_from);
