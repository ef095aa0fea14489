-- migrate:up

-- Beside a backlog records come from two places of the stream in turns. A single range of numbers for
-- some pages would then reach over everything between the two, and the auditor would read it all.
DROP INDEX usage_records_by_origin;
CREATE INDEX usage_records_by_origin ON usage_records
USING brin (stream_sequence int8_minmax_multi_ops) WITH (pages_per_range = 16, autosummarize = on);

-- migrate:down

DROP INDEX usage_records_by_origin;
CREATE INDEX usage_records_by_origin ON usage_records
USING brin (stream_sequence) WITH (pages_per_range = 16, autosummarize = on);
