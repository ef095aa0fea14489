-- migrate:up

ALTER TABLE transfers DROP CONSTRAINT transfers_kind_check;
ALTER TABLE transfers ADD CONSTRAINT transfers_kind_check CHECK (
    kind IN (
        'top_up', 'charge', 'void', 'correction', 'lease_hold', 'lease_release', 'receivable_paid',
        'promotional_credit', 'promotional_expiry', 'refund', 'energy_cost', 'payment_returned',
        'promotional_withdrawal'
    )
) NOT VALID;
ALTER TABLE transfers VALIDATE CONSTRAINT transfers_kind_check;

-- Credit that was given by mistake: what is unspent of it is taken back now, as if it had expired.
CREATE TABLE promotional_withdrawals (
    credit_id uuid PRIMARY KEY REFERENCES promotional_credits (credit_id),
    tenant_id text NOT NULL REFERENCES tenants (tenant_id),
    reason text NOT NULL CHECK (char_length(reason) BETWEEN 1 AND 200),
    withdrawn_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What expiry and withdrawal took back of a credit.
CREATE INDEX promotional_spending_by_us ON promotional_spending (credit_id)
WHERE request_id IS NULL;

CREATE FUNCTION end_withdrawn_credits() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE promotional_unspent AS u SET expires_at = least(u.expires_at, i.withdrawn_at)
    FROM inserted AS i WHERE u.credit_id = i.credit_id;
    RETURN NULL;
END
$$;

CREATE TRIGGER promotional_withdrawals_end_credits
AFTER INSERT ON promotional_withdrawals
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION end_withdrawn_credits();

CREATE TRIGGER promotional_withdrawals_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON promotional_withdrawals
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

GRANT SELECT, INSERT ON promotional_withdrawals TO busbar_billing_service;
GRANT SELECT ON promotional_withdrawals TO busbar_billing_auditor;

-- migrate:down

DROP TABLE promotional_withdrawals;
DROP FUNCTION end_withdrawn_credits();
DROP INDEX promotional_spending_by_us;
ALTER TABLE transfers DROP CONSTRAINT transfers_kind_check;
ALTER TABLE transfers ADD CONSTRAINT transfers_kind_check CHECK (
    kind IN (
        'top_up', 'charge', 'void', 'correction', 'lease_hold', 'lease_release', 'receivable_paid',
        'promotional_credit', 'promotional_expiry', 'refund', 'energy_cost', 'payment_returned'
    )
) NOT VALID;
ALTER TABLE transfers VALIDATE CONSTRAINT transfers_kind_check;
