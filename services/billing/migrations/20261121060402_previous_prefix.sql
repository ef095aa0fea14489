-- migrate:up

-- A key is found by the prefix of the secret before, too.
CREATE INDEX api_keys_by_previous_prefix ON api_keys (previous_prefix)
WHERE previous_prefix IS NOT NULL;

-- migrate:down

DROP INDEX api_keys_by_previous_prefix;
