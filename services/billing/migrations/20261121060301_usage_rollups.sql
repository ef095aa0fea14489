-- migrate:up

ALTER TABLE usage_records
-- The project of the key at the time; empty: the tenant's default project.
ADD COLUMN IF NOT EXISTS project_id text NOT NULL DEFAULT '';

-- What was used in each minute, hour and day (UTC, by admission), records taken back not counted: a
-- projection of usage_records, kept by the triggers below and by nothing else. A question about a year
-- reads some hundred rows of it instead of a million records.
CREATE TABLE usage_rollups (
    tenant_id text NOT NULL REFERENCES tenants (tenant_id),
    bucket_s integer NOT NULL CHECK (bucket_s IN (60, 3600, 86400)),
    bucket_at timestamptz NOT NULL,
    key_id text NOT NULL,
    project_id text NOT NULL,
    deployment text NOT NULL,
    requests bigint NOT NULL,
    voided_requests bigint NOT NULL DEFAULT 0,
    input_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    request_bytes numeric(38, 0) NOT NULL,
    response_bytes numeric(38, 0) NOT NULL,
    compute_us numeric(38, 0) NOT NULL,
    amount_nanos numeric(38, 0) NOT NULL,
    PRIMARY KEY (tenant_id, bucket_s, bucket_at, key_id, project_id, deployment)
) WITH (fillfactor = 70);

CREATE FUNCTION project_rollups() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO usage_rollups AS held (
        tenant_id, bucket_s, bucket_at, key_id, project_id, deployment, requests,
        input_tokens, cached_tokens, output_tokens, request_bytes, response_bytes, compute_us,
        amount_nanos
    )
    WITH minutes AS (
        SELECT
            i.tenant_id, date_bin('1 minute', i.admitted_at, 'epoch') AS minute_at,
            i.key_id, i.project_id, i.deployment, count(*) AS requests,
            sum(i.input_tokens) AS input_tokens, sum(i.cached_tokens) AS cached_tokens,
            sum(i.output_tokens) AS output_tokens,
            sum(i.request_bytes) AS request_bytes, sum(i.response_bytes) AS response_bytes,
            sum(i.compute_us) AS compute_us, sum(i.amount_nanos) AS amount_nanos
        FROM inserted AS i
        GROUP BY 1, 2, 3, 4, 5
    )
    SELECT
        m.tenant_id, g.bucket_s,
        date_bin(make_interval(secs => g.bucket_s), m.minute_at, 'epoch') AS bucket_at,
        m.key_id, m.project_id, m.deployment, sum(m.requests),
        sum(m.input_tokens), sum(m.cached_tokens), sum(m.output_tokens), sum(m.request_bytes),
        sum(m.response_bytes), sum(m.compute_us), sum(m.amount_nanos)
    FROM minutes AS m CROSS JOIN (VALUES (60), (3600), (86400)) AS g (bucket_s)
    GROUP BY 1, 2, 3, 4, 5, 6
    ORDER BY 1, 2, 3, 4, 5, 6 -- one order for everybody: no deadlocks
    ON CONFLICT (tenant_id, bucket_s, bucket_at, key_id, project_id, deployment) DO UPDATE SET
        requests = held.requests + excluded.requests,
        input_tokens = held.input_tokens + excluded.input_tokens,
        cached_tokens = held.cached_tokens + excluded.cached_tokens,
        output_tokens = held.output_tokens + excluded.output_tokens,
        request_bytes = held.request_bytes + excluded.request_bytes,
        response_bytes = held.response_bytes + excluded.response_bytes,
        compute_us = held.compute_us + excluded.compute_us,
        amount_nanos = held.amount_nanos + excluded.amount_nanos;
    RETURN NULL;
END
$$;

CREATE TRIGGER usage_records_project_rollups
AFTER INSERT ON usage_records
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION project_rollups();

-- A posting with voids runs beside no other, so the order of these locks does not matter.
CREATE FUNCTION take_voids_off_rollups() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM inserted AS i WHERE i.kind = 'void') THEN
        RETURN NULL;
    END IF;
    UPDATE usage_rollups AS held SET
        requests = held.requests - taken.requests,
        voided_requests = held.voided_requests + taken.requests,
        input_tokens = held.input_tokens - taken.input_tokens,
        cached_tokens = held.cached_tokens - taken.cached_tokens,
        output_tokens = held.output_tokens - taken.output_tokens,
        request_bytes = held.request_bytes - taken.request_bytes,
        response_bytes = held.response_bytes - taken.response_bytes,
        compute_us = held.compute_us - taken.compute_us,
        amount_nanos = held.amount_nanos - taken.amount_nanos
    FROM (
        SELECT
            u.tenant_id, g.bucket_s,
            date_bin(make_interval(secs => g.bucket_s), u.admitted_at, 'epoch') AS bucket_at,
            u.key_id, u.project_id, u.deployment, count(*) AS requests,
            sum(u.input_tokens) AS input_tokens, sum(u.cached_tokens) AS cached_tokens,
            sum(u.output_tokens) AS output_tokens,
            sum(u.request_bytes) AS request_bytes, sum(u.response_bytes) AS response_bytes,
            sum(u.compute_us) AS compute_us, sum(u.amount_nanos) AS amount_nanos
        FROM inserted AS i
        INNER JOIN usage_records AS u USING (request_id)
        CROSS JOIN (VALUES (60), (3600), (86400)) AS g (bucket_s)
        WHERE i.kind = 'void'
        GROUP BY 1, 2, 3, 4, 5, 6
    ) AS taken
    WHERE (held.tenant_id, held.bucket_s, held.bucket_at)
    = (taken.tenant_id, taken.bucket_s, taken.bucket_at)
    AND (held.key_id, held.project_id, held.deployment)
    = (taken.key_id, taken.project_id, taken.deployment);
    RETURN NULL;
END
$$;

CREATE TRIGGER transfers_take_voids_off_rollups
AFTER INSERT ON transfers
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION take_voids_off_rollups();

-- What was posted before there were rollups. Charges are taken back by a transfer, so that is what
-- says which records do not count.
INSERT INTO usage_rollups (
    tenant_id, bucket_s, bucket_at, key_id, project_id, deployment, requests, voided_requests,
    input_tokens, cached_tokens, output_tokens, request_bytes, response_bytes, compute_us, amount_nanos
)
SELECT
    u.tenant_id,
    g.bucket_s,
    date_bin(make_interval(secs => g.bucket_s), u.admitted_at, 'epoch'),
    u.key_id,
    u.project_id,
    u.deployment,
    count(*) FILTER (WHERE t.transfer_id IS NULL),
    count(*) FILTER (WHERE t.transfer_id IS NOT NULL),
    coalesce(sum(u.input_tokens) FILTER (WHERE t.transfer_id IS NULL), 0),
    coalesce(sum(u.cached_tokens) FILTER (WHERE t.transfer_id IS NULL), 0),
    coalesce(sum(u.output_tokens) FILTER (WHERE t.transfer_id IS NULL), 0),
    coalesce(sum(u.request_bytes) FILTER (WHERE t.transfer_id IS NULL), 0),
    coalesce(sum(u.response_bytes) FILTER (WHERE t.transfer_id IS NULL), 0),
    coalesce(sum(u.compute_us) FILTER (WHERE t.transfer_id IS NULL), 0),
    coalesce(sum(u.amount_nanos) FILTER (WHERE t.transfer_id IS NULL), 0)
FROM usage_records AS u
CROSS JOIN (VALUES (60), (3600), (86400)) AS g (bucket_s)
LEFT JOIN transfers AS t ON t.request_id = u.request_id AND t.kind = 'void'
GROUP BY 1, 2, 3, 4, 5, 6;

GRANT SELECT ON usage_rollups TO busbar_billing_service;

-- migrate:down

DROP TRIGGER transfers_take_voids_off_rollups ON transfers;
DROP TRIGGER usage_records_project_rollups ON usage_records;
DROP FUNCTION take_voids_off_rollups();
DROP FUNCTION project_rollups();
DROP TABLE usage_rollups;
ALTER TABLE usage_records DROP COLUMN project_id;
