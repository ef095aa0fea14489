-- migrate:up

-- Who reads on behalf of one tenant. The service takes this role for the length of a transaction,
-- with busbar.tenant_id set; then it sees that tenant's rows and nothing else, whatever it asks.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'busbar_billing_tenant') THEN
        CREATE ROLE busbar_billing_tenant NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL; -- another database of this server was migrated at the same moment
END
$$;

GRANT USAGE ON SCHEMA public TO busbar_billing_tenant;
DO $$
BEGIN
    GRANT busbar_billing_tenant TO busbar_billing_service WITH INHERIT FALSE, SET TRUE;
EXCEPTION WHEN unique_violation OR internal_error THEN
    NULL; -- as above
END
$$;

CREATE FUNCTION current_tenant() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT nullif(current_setting('busbar.tenant_id', TRUE), '')
$$;

-- Isolates every table that has a column tenant_id, and those that belong to one which has. Run again
-- after each migration by busbar_billing.migrate, so that no new table is forgotten.
CREATE FUNCTION isolate_tenants() RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT
            c.oid::regclass AS name,
            -- A tenant may know by which prices it was rated: everybody's and its own.
            CASE WHEN c.relname = 'price_books' THEN 'tenant_id IS NULL OR ' ELSE '' END
            || 'tenant_id = current_tenant()' AS own
        FROM pg_class AS c
        INNER JOIN pg_attribute AS a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
        AND a.attname = 'tenant_id' AND NOT a.attisdropped
        UNION ALL
        VALUES
        ('postings'::regclass, 'account_id IN (SELECT account_id FROM accounts)'),
        ('account_balances'::regclass, 'account_id IN (SELECT account_id FROM accounts)'),
        (
            'promotional_spending'::regclass,
            'credit_id IN (SELECT credit_id FROM promotional_credits)'
        )
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', found.name);
        EXECUTE format('DROP POLICY IF EXISTS service_sees_all ON %s', found.name);
        EXECUTE format(
            'CREATE POLICY service_sees_all ON %s TO busbar_billing_service'
            ' USING (TRUE) WITH CHECK (TRUE)', found.name
        );
        EXECUTE format('DROP POLICY IF EXISTS tenant_sees_own ON %s', found.name);
        EXECUTE format(
            'CREATE POLICY tenant_sees_own ON %s FOR SELECT TO busbar_billing_tenant USING (%s)',
            found.name, found.own
        );
        -- Ours to know: what credit is where, what work cost us, what a key hashes to.
        IF found.name NOT IN ('leases'::regclass, 'work_measured'::regclass, 'api_keys'::regclass)
        THEN
            EXECUTE format('GRANT SELECT ON %s TO busbar_billing_tenant', found.name);
        END IF;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION isolate_tenants() FROM public;
GRANT SELECT (
    key_id, tenant_id, name, prefix, deployments, expires_at, created_at, revoked_at,
    project_id, scopes, last_used_at
) ON api_keys TO busbar_billing_tenant;
SELECT isolate_tenants();

-- migrate:down

DO $$
DECLARE
    found record;
BEGIN
    FOR found IN SELECT format('%I.%I', schemaname, tablename) AS name, policyname FROM pg_policies
    WHERE policyname IN ('service_sees_all', 'tenant_sees_own')
    LOOP
        EXECUTE format('DROP POLICY %I ON %s', found.policyname, found.name);
        EXECUTE format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY', found.name);
    END LOOP;
END
$$;
DROP FUNCTION isolate_tenants();
DROP FUNCTION current_tenant();
DROP OWNED BY busbar_billing_tenant;
