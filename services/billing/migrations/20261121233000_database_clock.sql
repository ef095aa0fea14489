-- migrate:up

-- When a row was written is the database's to say: what the auditor does not ask a warrant or a message
-- of because it is older than those must not call itself so. Numbers are given by a trigger anyway.
REVOKE INSERT ON transfers, usage_records, usage_voids, statements, warrants FROM busbar_billing_service;
GRANT INSERT (transfer_id, kind, idempotency_key, tenant_id, request_id, reason) ON transfers
TO busbar_billing_service;
GRANT INSERT (
    request_id, tenant_id, key_id, deployment, price_class, api, outcome, admitted_at, finished_at,
    input_tokens, output_tokens, request_bytes, response_bytes, compute_us, node, attempt, gateway_id,
    trace_id, price_version, rated_class, amount_nanos, currency, transfer_id, cached_tokens, consumed,
    lease_id, project_id, stream_sequence
) ON usage_records TO busbar_billing_service;
GRANT INSERT (request_id, tenant_id, reason) ON usage_voids TO busbar_billing_service;
GRANT INSERT (
    entity_id, kind, tenant_id, period_start, cut_at, closing_nanos, corrects, reference, transfer_id,
    content
) ON statements TO busbar_billing_service;
GRANT INSERT (subject, digest) ON warrants TO busbar_billing_service;

-- migrate:down

REVOKE INSERT (transfer_id, kind, idempotency_key, tenant_id, request_id, reason) ON transfers
FROM busbar_billing_service;
REVOKE INSERT (
    request_id, tenant_id, key_id, deployment, price_class, api, outcome, admitted_at, finished_at,
    input_tokens, output_tokens, request_bytes, response_bytes, compute_us, node, attempt, gateway_id,
    trace_id, price_version, rated_class, amount_nanos, currency, transfer_id, cached_tokens, consumed,
    lease_id, project_id, stream_sequence
) ON usage_records FROM busbar_billing_service;
REVOKE INSERT (request_id, tenant_id, reason) ON usage_voids FROM busbar_billing_service;
REVOKE INSERT (
    entity_id, kind, tenant_id, period_start, cut_at, closing_nanos, corrects, reference, transfer_id,
    content
) ON statements FROM busbar_billing_service;
REVOKE INSERT (subject, digest) ON warrants FROM busbar_billing_service;
GRANT INSERT ON transfers, usage_records, usage_voids, statements, warrants TO busbar_billing_service;
