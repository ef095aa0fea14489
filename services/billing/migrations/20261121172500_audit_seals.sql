-- migrate:up

-- What an audit from zero found in order, in pieces that end at `upto`. `digest` is of the rows, of
-- the seal before it and of a secret that is not in the database: whoever changes rows cannot seal them.
CREATE TABLE audit_seals (
    part text NOT NULL CHECK (part IN ('prices', 'journal', 'inbox')),
    upto uuid NOT NULL,
    rows bigint NOT NULL,
    digest bytea NOT NULL,
    sealed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (part, upto)
);

GRANT SELECT, INSERT, DELETE ON audit_seals TO busbar_billing_service;

-- migrate:down

DROP TABLE audit_seals;
