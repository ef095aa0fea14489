-- migrate:up

-- A version is in force from effective_from until the next of its currency begins: versions
-- cannot overlap, and like the journal they never change.
CREATE TABLE price_books (
    version bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    effective_from timestamptz NOT NULL,
    -- Charges are rounded half-even to a multiple of this; the remainder goes to `rounding`.
    charge_quantum_nanos bigint NOT NULL CHECK (charge_quantum_nanos BETWEEN 1 AND 1000000000),
    note text NOT NULL DEFAULT '' CHECK (char_length(note) <= 500),
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (currency, effective_from)
);

CREATE TABLE prices (
    version bigint NOT NULL REFERENCES price_books (version),
    price_class text NOT NULL CHECK (price_class ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    component text NOT NULL CHECK (
        component IN ('input_token', 'output_token', 'request', 'compute_second', 'megabyte')
    ),
    -- amount_nanos buys per_units of the component.
    amount_nanos bigint NOT NULL CHECK (amount_nanos BETWEEN 0 AND 1000000000000000),
    per_units bigint NOT NULL CHECK (per_units IN (1, 1000, 1000000)),
    PRIMARY KEY (version, price_class, component)
);

CREATE TRIGGER price_books_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON price_books
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TRIGGER prices_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON prices
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

GRANT SELECT, INSERT ON price_books, prices TO busbar_billing_service;

-- The first price book, in force from the beginning of time, so that no record is without one.
WITH first AS (
    INSERT INTO price_books (currency, effective_from, charge_quantum_nanos, note)
    VALUES ('USD', '1970-01-01 00:00:00+00', 1, 'initial prices')
    RETURNING version
)
INSERT INTO prices (version, price_class, component, amount_nanos, per_units)
SELECT first.version, listed.price_class, listed.component, listed.amount_nanos, listed.per_units
FROM first,
    (
        VALUES
        ('embed-small', 'input_token', 20000000, 1000000), -- USD 0.02 per million tokens
        ('chat-small', 'input_token', 100000000, 1000000), -- USD 0.10 per million tokens
        ('chat-small', 'output_token', 400000000, 1000000), -- USD 0.40 per million tokens
        ('tensor-small', 'request', 1000, 1), -- USD 1.00 per million requests
        ('tensor-small', 'compute_second', 50000000, 1000), -- USD 0.05 per thousand seconds
        ('tensor-small', 'megabyte', 10000000, 1000), -- USD 0.01 per gigabyte, both ways
        -- What nobody priced still costs something: the class that is billed when a record's own
        -- class is not in the book.
        ('default', 'input_token', 100000000, 1000000),
        ('default', 'output_token', 400000000, 1000000),
        ('default', 'request', 1000, 1),
        ('default', 'compute_second', 50000000, 1000),
        ('default', 'megabyte', 10000000, 1000)
    ) AS listed (price_class, component, amount_nanos, per_units);

-- migrate:down

DROP TABLE prices;
DROP TABLE price_books;
