-- migrate:up

ALTER TABLE usage_records
-- The message of the stream USAGE that brought it, so that either can be looked for in the other; 0 in
-- rows from before this was kept.
ADD COLUMN stream_sequence bigint NOT NULL DEFAULT 0;

-- Rows come in the order of the stream, save for what is delivered again: a BRIN costs an insert nothing.
CREATE INDEX usage_records_by_origin ON usage_records
USING brin (stream_sequence) WITH (pages_per_range = 16, autosummarize = on);

-- Since when it is kept.
CREATE TABLE usage_origins (
    kept_since timestamptz NOT NULL DEFAULT now()
);
INSERT INTO usage_origins DEFAULT VALUES;
GRANT SELECT ON usage_origins, usage_voids TO busbar_billing_auditor;

-- migrate:down

DROP TABLE usage_origins;
DROP INDEX usage_records_by_origin;
ALTER TABLE usage_records DROP COLUMN stream_sequence;
