-- migrate:up

-- Refunds, corrections and voids of a tenant, few beside its charges: what a credit note must know.
CREATE INDEX transfers_given_back ON transfers (tenant_id, transfer_id)
WHERE kind IN ('refund', 'correction', 'void');

-- migrate:down

DROP INDEX transfers_given_back;
