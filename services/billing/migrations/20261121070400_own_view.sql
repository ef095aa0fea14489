-- migrate:up

-- Payments are few among charges: a tenant's list of them reads nothing else.
CREATE INDEX transfers_of_payments ON transfers (tenant_id, transfer_id)
WHERE kind IN ('top_up', 'payment_returned', 'correction');

-- What customers are shown of a key's last rotation; its digests stay ours.
GRANT SELECT (previous_prefix, previous_until) ON api_keys TO busbar_billing_tenant;

-- A tenant sees the plan that it has. Its own terms say which, as row-level security holds for them.
ALTER TABLE plans ENABLE ROW LEVEL SECURITY;
CREATE POLICY service_sees_all ON plans TO busbar_billing_service USING (TRUE) WITH CHECK (TRUE);
CREATE POLICY tenant_sees_own ON plans FOR SELECT TO busbar_billing_tenant
USING (plan_id IN (SELECT o.plan_id FROM tenant_terms AS o));
GRANT SELECT ON plans TO busbar_billing_tenant;

-- migrate:down

REVOKE ALL ON plans FROM busbar_billing_tenant;
DROP POLICY tenant_sees_own ON plans;
DROP POLICY service_sees_all ON plans;
ALTER TABLE plans DISABLE ROW LEVEL SECURITY;
REVOKE SELECT (previous_prefix, previous_until) ON api_keys FROM busbar_billing_tenant;
DROP INDEX transfers_of_payments;
