-- migrate:up

-- Who the running service is. Logins are granted this role by busbar_billing.migrate; everything
-- below says what it may do, and what is not said it may not.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'busbar_billing_service') THEN
        CREATE ROLE busbar_billing_service NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL; -- another database of this server was migrated at the same moment
END
$$;

GRANT USAGE ON SCHEMA public TO busbar_billing_service;

CREATE TABLE tenants (
    tenant_id text PRIMARY KEY CHECK (tenant_id ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 100),
    -- The one currency in which the tenant pays and holds a balance.
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_keys (
    key_id text PRIMARY KEY CHECK (key_id ~ '^key_[0-9a-f]{32}$'),
    tenant_id text NOT NULL REFERENCES tenants (tenant_id),
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 100),
    -- HMAC-SHA256 of the key; the key itself is shown once and stored nowhere.
    key_hmac bytea NOT NULL UNIQUE CHECK (octet_length(key_hmac) = 32),
    -- First characters of the key, so that people recognise it.
    prefix text NOT NULL,
    -- Deployments it may use; empty means every one open to the tenant.
    deployments text [] NOT NULL DEFAULT '{}',
    expires_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);

CREATE INDEX api_keys_of_tenant ON api_keys (tenant_id, key_id);

GRANT SELECT, INSERT ON tenants, api_keys TO busbar_billing_service;
-- A key is revoked by writing when; nothing else about it ever changes.
GRANT UPDATE (revoked_at) ON api_keys TO busbar_billing_service;

-- migrate:down

DROP TABLE api_keys;
DROP TABLE tenants;
REVOKE ALL ON SCHEMA public FROM busbar_billing_service;
