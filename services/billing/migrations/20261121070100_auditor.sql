-- migrate:up

-- Who audits. The service takes this role for the length of a transaction; it can read what is
-- audited, of every tenant, and write nothing.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'busbar_billing_auditor') THEN
        CREATE ROLE busbar_billing_auditor NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL; -- another database of this server was migrated at the same moment
END
$$;

GRANT USAGE ON SCHEMA public TO busbar_billing_auditor;
DO $$
BEGIN
    GRANT busbar_billing_auditor TO busbar_billing_service WITH INHERIT FALSE, SET TRUE;
EXCEPTION WHEN unique_violation OR internal_error THEN
    NULL; -- as above
END
$$;

GRANT SELECT ON
tenants, accounts, transfers, postings, account_balances, price_books, prices, price_tiers,
usage_records, usage_voids, usage_rollups, tenant_months, monthly_use, leases, work_measured,
energy_prices, promotional_credits, promotional_spending, promotional_unspent, statements,
legal_entities, payments
TO busbar_billing_auditor;

-- Row-level security keeps tenants apart, not the auditor from them. Run again after each migration by
-- busbar_billing.migrate, as isolate_tenants() may have protected a table that is new.
CREATE FUNCTION let_auditor_read() RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT c.oid::regclass AS name
        FROM pg_class AS c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relrowsecurity
    LOOP
        EXECUTE format('DROP POLICY IF EXISTS auditor_sees_all ON %s', found.name);
        EXECUTE format(
            'CREATE POLICY auditor_sees_all ON %s FOR SELECT TO busbar_billing_auditor USING (TRUE)',
            found.name
        );
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION let_auditor_read() FROM public;
SELECT let_auditor_read();

-- migrate:down

DO $$
DECLARE
    found record;
BEGIN
    FOR found IN SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_policies
    WHERE policyname = 'auditor_sees_all'
    LOOP
        EXECUTE format('DROP POLICY auditor_sees_all ON %s', found.name);
    END LOOP;
END
$$;
DROP FUNCTION let_auditor_read();
DROP OWNED BY busbar_billing_auditor;
