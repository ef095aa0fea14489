-- migrate:up

-- How far the auditor is: `new` follows what is posted, `sweep` begins at zero again and again.
CREATE TABLE audit_walks (
    walk text PRIMARY KEY CHECK (walk IN ('new', 'sweep')),
    began_at timestamptz NOT NULL,
    -- NULL: it ended, and the next one begins at zero.
    position jsonb,
    changed_at timestamptz NOT NULL DEFAULT now()
);

-- What each walk has added up for each account: the journal up to its position.
CREATE TABLE audit_replayed (
    walk text NOT NULL,
    account_id bigint NOT NULL,
    replayed_nanos numeric(38, 0) NOT NULL,
    PRIMARY KEY (walk, account_id)
) WITH (fillfactor = 50);

-- What it found. A breach is told once, and again when it was gone in between.
CREATE TABLE audit_breaches (
    fingerprint text PRIMARY KEY,
    check_name text NOT NULL,
    subject text NOT NULL,
    detail text NOT NULL,
    found_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now(),
    gone_at timestamptz -- a sweep from zero did not find it any more
);

-- One instance of the service at a time.
CREATE TABLE audit_holder (
    one boolean PRIMARY KEY DEFAULT TRUE CHECK (one),
    holder text NOT NULL,
    held_until timestamptz NOT NULL
);
INSERT INTO audit_holder (holder, held_until) VALUES ('', '-infinity');

GRANT SELECT, INSERT, UPDATE ON audit_walks, audit_replayed, audit_breaches TO busbar_billing_service;
GRANT DELETE ON audit_replayed TO busbar_billing_service;
GRANT SELECT, UPDATE ON audit_holder TO busbar_billing_service;

-- migrate:down

DROP TABLE audit_holder;
DROP TABLE audit_breaches;
DROP TABLE audit_replayed;
DROP TABLE audit_walks;
