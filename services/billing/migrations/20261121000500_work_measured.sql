-- migrate:up

-- What each attempt cost, as its node measured it; joined with usage_records by request id.
CREATE TABLE work_measured (
    node text NOT NULL,
    agent_run_id text NOT NULL,
    -- Counts from 1 without gaps per agent run, so that loss is visible.
    sequence bigint NOT NULL CHECK (sequence > 0),
    request_id uuid NOT NULL,
    attempt integer NOT NULL,
    tenant_id text NOT NULL,
    deployment text NOT NULL,
    finished boolean NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    queue_us bigint NOT NULL,
    compute_us bigint NOT NULL,
    energy_mj bigint, -- NULL: the node has no counter
    ended_at timestamptz NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (node, agent_run_id, sequence)
);

CREATE INDEX work_measured_of_request ON work_measured (request_id);

GRANT SELECT, INSERT ON work_measured TO busbar_billing_service;

-- migrate:down

DROP TABLE work_measured;
