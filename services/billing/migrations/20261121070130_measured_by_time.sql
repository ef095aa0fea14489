-- migrate:up

-- The auditor goes through measured work in the order in which it was stored; what a transaction
-- stored together has one time.
CREATE INDEX work_measured_by_time ON work_measured (received_at);

GRANT EXECUTE ON FUNCTION month_of(timestamptz) TO busbar_billing_auditor;

-- migrate:down

REVOKE ALL ON FUNCTION month_of(timestamptz) FROM busbar_billing_auditor;
DROP INDEX work_measured_by_time;
