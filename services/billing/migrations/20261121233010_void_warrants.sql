-- migrate:up

-- That a charge is to be taken back is vouched for from now on, too: before, a row in usage_voids was
-- all that the auditor asked for.
ALTER TABLE warranted_since
ADD COLUMN what text NOT NULL DEFAULT 'transfers' CHECK (what IN ('transfers', 'voids'));
INSERT INTO warranted_since (what, since)
SELECT 'voids', clock_timestamp() + CASE WHEN EXISTS (SELECT FROM transfers) THEN interval '1 hour' ELSE '0' END;

-- migrate:down

ALTER TABLE warranted_since DISABLE TRIGGER warranted_since_append_only;
DELETE FROM warranted_since WHERE what = 'voids';
ALTER TABLE warranted_since ENABLE TRIGGER warranted_since_append_only;
ALTER TABLE warranted_since DROP COLUMN what;
