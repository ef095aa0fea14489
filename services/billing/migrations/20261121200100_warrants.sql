-- migrate:up

-- What vouches for transfers and statements that follow from nothing else in these tables: an HMAC of
-- all that they say, by a key that is not in the database. So the auditor sees what only SQL wrote.
CREATE TABLE warrants (
    subject text PRIMARY KEY CHECK (char_length(subject) BETWEEN 1 AND 100),
    digest bytea NOT NULL CHECK (octet_length(digest) = 32),
    made_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TRIGGER warrants_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON warrants
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- What was written before has none. Where the books are older, instances of the version before may go
-- on posting for an hour.
CREATE TABLE warranted_since (since timestamptz NOT NULL);
INSERT INTO warranted_since (since)
SELECT clock_timestamp() + CASE WHEN EXISTS (SELECT FROM transfers) THEN interval '1 hour' ELSE '0' END;

CREATE TRIGGER warranted_since_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON warranted_since
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

GRANT SELECT, INSERT ON warrants TO busbar_billing_service;
GRANT SELECT ON warrants, warranted_since TO busbar_billing_auditor;

-- migrate:down

DROP TABLE warranted_since;
DROP TABLE warrants;
