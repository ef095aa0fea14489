-- migrate:up

-- No two tenants are called alike, so that a name finds one. Where there were doubles, the first keeps
-- its name and the others have their id appended.
UPDATE tenants AS t SET name = left(t.name, 60) || ' ' || left(t.tenant_id, 39)
WHERE EXISTS (
    SELECT FROM tenants AS older
    WHERE lower(older.name COLLATE pg_c_utf8) = lower(t.name COLLATE pg_c_utf8)
    AND (older.created_at, older.tenant_id) < (t.created_at, t.tenant_id)
);
CREATE UNIQUE INDEX tenants_called ON tenants (lower(name COLLATE pg_c_utf8));

-- A plan is limits under a name. In all of it 0 means no limit.
CREATE TABLE plans (
    plan_id text PRIMARY KEY CHECK (plan_id ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 100),
    requests_per_minute bigint NOT NULL CHECK (requests_per_minute >= 0),
    tokens_per_minute bigint NOT NULL CHECK (tokens_per_minute >= 0),
    max_in_flight bigint NOT NULL CHECK (max_in_flight BETWEEN 0 AND 4294967295),
    -- In the currency of the tenant that has the plan, 1e-9 of it, per calendar month in UTC.
    monthly_budget_nanos bigint NOT NULL CHECK (monthly_budget_nanos >= 0),
    budget_kind text NOT NULL CHECK (budget_kind IN ('hard', 'alert')),
    band text NOT NULL CHECK (band IN ('interactive', 'standard', 'batch')),
    weight integer NOT NULL CHECK (weight >= 1),
    created_at timestamptz NOT NULL DEFAULT now(),
    changed_at timestamptz NOT NULL DEFAULT now()
);

-- What a tenant may do. A tenant without a row has no plan and no limits. A column that is NULL says
-- what the plan says; any other overrides it.
CREATE TABLE tenant_terms (
    tenant_id text PRIMARY KEY REFERENCES tenants (tenant_id),
    plan_id text REFERENCES plans (plan_id),
    requests_per_minute bigint CHECK (requests_per_minute >= 0),
    tokens_per_minute bigint CHECK (tokens_per_minute >= 0),
    max_in_flight bigint CHECK (max_in_flight BETWEEN 0 AND 4294967295),
    monthly_budget_nanos bigint CHECK (monthly_budget_nanos >= 0),
    budget_kind text CHECK (budget_kind IN ('hard', 'alert')),
    band text CHECK (band IN ('interactive', 'standard', 'batch')),
    weight integer CHECK (weight >= 1),
    -- Why nothing is served, in words for the customer; empty means it is served.
    suspended_reason text NOT NULL DEFAULT '' CHECK (char_length(suspended_reason) <= 200),
    changed_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX tenant_terms_of_plan ON tenant_terms (plan_id, tenant_id);

CREATE TABLE projects (
    project_id text PRIMARY KEY CHECK (project_id ~ '^prj_[0-9a-f]{32}$'),
    tenant_id text NOT NULL REFERENCES tenants (tenant_id),
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 100),
    created_at timestamptz NOT NULL DEFAULT now(),
    archived_at timestamptz,
    UNIQUE (tenant_id, project_id)
);

CREATE UNIQUE INDEX projects_called ON projects (tenant_id, lower(name COLLATE pg_c_utf8)) WHERE archived_at IS NULL;

ALTER TABLE api_keys
-- NULL: the tenant's default project.
ADD COLUMN project_id text,
ADD COLUMN scopes text [] NOT NULL DEFAULT '{serve}' CHECK (
    cardinality(scopes) > 0 AND scopes <@ ARRAY['serve', 'read_usage', 'administer']
),
-- The secret before the last rotation, accepted until previous_until.
ADD COLUMN previous_hmac bytea CHECK (octet_length(previous_hmac) = 32),
ADD COLUMN previous_prefix text,
ADD COLUMN previous_until timestamptz,
-- From usage as it is posted; to the minute.
ADD COLUMN last_used_at timestamptz,
ADD CONSTRAINT api_keys_project_of_tenant
FOREIGN KEY (tenant_id, project_id) REFERENCES projects (tenant_id, project_id) NOT VALID,
ADD CONSTRAINT api_keys_previous_secret CHECK (
    num_nulls(previous_hmac, previous_prefix, previous_until) IN (0, 3)
) NOT VALID;
ALTER TABLE api_keys VALIDATE CONSTRAINT api_keys_project_of_tenant;
ALTER TABLE api_keys VALIDATE CONSTRAINT api_keys_previous_secret;

CREATE UNIQUE INDEX api_keys_by_previous ON api_keys (previous_hmac)
WHERE previous_hmac IS NOT NULL;

CREATE INDEX api_keys_by_prefix ON api_keys (prefix);
CREATE INDEX api_keys_not_revoked ON api_keys (tenant_id, key_id) WHERE revoked_at IS NULL;
CREATE INDEX api_keys_of_project ON api_keys (project_id)
WHERE revoked_at IS NULL AND project_id IS NOT NULL;

-- What each tenant was charged in a calendar month (UTC, by admission), voids taken off: a projection
-- of usage_records, kept by the triggers below and by nothing else.
CREATE TABLE tenant_months (
    tenant_id text NOT NULL REFERENCES tenants (tenant_id),
    month date NOT NULL CHECK (extract(DAY FROM month) = 1),
    spent_nanos numeric(38, 0) NOT NULL,
    PRIMARY KEY (tenant_id, month)
) WITH (fillfactor = 50);

CREATE FUNCTION month_of(moment timestamptz) RETURNS date
LANGUAGE sql STABLE AS $$ SELECT date_trunc('month', moment AT TIME ZONE 'UTC')::date $$;

CREATE FUNCTION project_months() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO tenant_months AS held (tenant_id, month, spent_nanos)
    SELECT i.tenant_id, month_of(i.admitted_at) AS month, sum(i.amount_nanos)
    FROM inserted AS i
    GROUP BY 1, 2
    ORDER BY 1, 2 -- one order for everybody: no deadlocks
    ON CONFLICT (tenant_id, month)
    DO UPDATE SET spent_nanos = held.spent_nanos + excluded.spent_nanos;
    RETURN NULL;
END
$$;

CREATE TRIGGER usage_records_project_months
AFTER INSERT ON usage_records
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION project_months();

CREATE FUNCTION take_voids_off_months() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE tenant_months AS held SET spent_nanos = held.spent_nanos - taken.amount_nanos
    FROM (
        SELECT u.tenant_id, month_of(u.admitted_at) AS month, sum(u.amount_nanos) AS amount_nanos
        FROM inserted AS i
        INNER JOIN usage_records AS u USING (request_id)
        WHERE i.kind = 'void'
        GROUP BY 1, 2
    ) AS taken
    WHERE held.tenant_id = taken.tenant_id AND held.month = taken.month;
    RETURN NULL;
END
$$;

CREATE TRIGGER transfers_take_voids_off_months
AFTER INSERT ON transfers
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION take_voids_off_months();

INSERT INTO tenant_months (tenant_id, month, spent_nanos)
SELECT
    u.tenant_id,
    month_of(u.admitted_at),
    sum(CASE WHEN v.request_id IS NULL THEN u.amount_nanos ELSE 0 END)
FROM usage_records AS u
LEFT JOIN usage_voids AS v USING (request_id)
GROUP BY 1, 2;

-- Budgets of which somebody was told, so that each is told once. A changed budget counts anew.
CREATE TABLE budget_alerts (
    tenant_id text NOT NULL REFERENCES tenants (tenant_id),
    month date NOT NULL,
    percent smallint NOT NULL,
    budget_nanos bigint NOT NULL,
    alerted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, month, percent, budget_nanos)
);

GRANT SELECT, INSERT, UPDATE, DELETE ON plans TO busbar_billing_service;
GRANT SELECT, INSERT, UPDATE ON tenant_terms TO busbar_billing_service;
GRANT SELECT, INSERT ON projects, budget_alerts TO busbar_billing_service;
GRANT UPDATE (archived_at) ON projects TO busbar_billing_service;
GRANT UPDATE (
    key_hmac, prefix, previous_hmac, previous_prefix, previous_until, last_used_at
) ON api_keys TO busbar_billing_service;
GRANT SELECT ON tenant_months TO busbar_billing_service;

-- migrate:down

DROP TABLE budget_alerts;
DROP TRIGGER transfers_take_voids_off_months ON transfers;
DROP TRIGGER usage_records_project_months ON usage_records;
DROP FUNCTION take_voids_off_months();
DROP FUNCTION project_months();
DROP TABLE tenant_months;
DROP FUNCTION month_of(timestamptz);
DROP INDEX api_keys_by_prefix;
DROP INDEX api_keys_not_revoked;
ALTER TABLE api_keys
DROP CONSTRAINT api_keys_project_of_tenant,
DROP CONSTRAINT api_keys_previous_secret,
DROP COLUMN project_id,
DROP COLUMN scopes,
DROP COLUMN previous_hmac,
DROP COLUMN previous_prefix,
DROP COLUMN previous_until,
DROP COLUMN last_used_at;
DROP TABLE projects;
DROP TABLE tenant_terms;
DROP TABLE plans;
DROP INDEX tenants_called;
