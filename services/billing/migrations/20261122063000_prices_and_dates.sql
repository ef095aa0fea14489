-- migrate:up

-- Versions of the price book are vouched for from now on, too, and the ids of transfers say when they
-- were posted: what was written before is not asked for a warrant, nor, where there was any, compared.
ALTER TABLE warranted_since DROP CONSTRAINT warranted_since_what_check;
ALTER TABLE warranted_since ADD CONSTRAINT warranted_since_what_check
CHECK (what IN ('transfers', 'voids', 'prices', 'dates')) NOT VALID;
ALTER TABLE warranted_since VALIDATE CONSTRAINT warranted_since_what_check;
INSERT INTO warranted_since (what, since)
SELECT 'prices', clock_timestamp() + CASE WHEN EXISTS (SELECT FROM transfers) THEN interval '1 hour' ELSE '0' END
UNION ALL
SELECT 'dates', CASE WHEN EXISTS (SELECT FROM transfers) THEN clock_timestamp() ELSE '-infinity' END;

-- When a version was published is the database's to say, as of all that is vouched for.
REVOKE INSERT ON price_books FROM busbar_billing_service;
GRANT INSERT (
    currency, effective_from, charge_quantum_nanos, note, tenant_id, effective_until
) ON price_books TO busbar_billing_service;

-- How many versions there ever were: of one that is gone the warrant is left.
GRANT SELECT ON SEQUENCE price_books_version_seq TO busbar_billing_auditor;

-- migrate:down

REVOKE SELECT ON SEQUENCE price_books_version_seq FROM busbar_billing_auditor;
REVOKE INSERT (
    currency, effective_from, charge_quantum_nanos, note, tenant_id, effective_until
) ON price_books FROM busbar_billing_service;
GRANT INSERT ON price_books TO busbar_billing_service;
ALTER TABLE warranted_since DISABLE TRIGGER warranted_since_append_only;
DELETE FROM warranted_since WHERE what IN ('prices', 'dates');
ALTER TABLE warranted_since ENABLE TRIGGER warranted_since_append_only;
ALTER TABLE warranted_since DROP CONSTRAINT warranted_since_what_check;
ALTER TABLE warranted_since ADD CONSTRAINT warranted_since_what_check
CHECK (what IN ('transfers', 'voids'));
