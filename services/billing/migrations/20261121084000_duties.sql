-- migrate:up

-- What one instance of the service does for all of them. Whoever does it says so again every few
-- seconds; when it stops doing so, another takes over.
CREATE TABLE duties (
    duty text PRIMARY KEY,
    holder text NOT NULL,
    held_until timestamptz NOT NULL
);
INSERT INTO duties (duty, holder, held_until) VALUES
('audit', '', '-infinity'), ('close_months', '', '-infinity');
GRANT SELECT, UPDATE ON duties TO busbar_billing_service;

-- audit_holder stays for the instances of the release before, which ask it while they are replaced.

-- migrate:down

DROP TABLE duties;
