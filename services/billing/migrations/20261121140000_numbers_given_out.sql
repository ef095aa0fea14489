-- migrate:up

-- How many numbers an entity has given out, kept apart from the statements that bear them: so it
-- shows when the last of them is gone.
ALTER TABLE legal_entities ADD COLUMN last_sequence bigint NOT NULL DEFAULT 0;

UPDATE legal_entities AS e SET last_sequence = coalesce(
    (SELECT max(s.sequence) FROM statements AS s WHERE s.entity_id = e.entity_id), 0
);

-- The next number of its entity, whose row stays locked until the transaction ends: what is rolled
-- back leaves no gap, and nothing else can choose a number.
CREATE OR REPLACE FUNCTION number_statement() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    prefix text;
BEGIN
    UPDATE legal_entities AS e SET last_sequence = e.last_sequence + 1
    WHERE e.entity_id = new.entity_id
    RETURNING e.number_prefix, e.last_sequence INTO prefix, new.sequence;
    new.number := prefix || '-' || lpad(new.sequence::text, greatest(6, length(new.sequence::text)), '0');
    RETURN new;
END
$$;

-- migrate:down

CREATE OR REPLACE FUNCTION number_statement() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    prefix text;
BEGIN
    SELECT e.number_prefix INTO prefix
    FROM legal_entities AS e WHERE e.entity_id = new.entity_id FOR UPDATE;
    SELECT coalesce(max(s.sequence), 0) + 1 INTO new.sequence
    FROM statements AS s WHERE s.entity_id = new.entity_id;
    new.number := prefix || '-' || lpad(new.sequence::text, greatest(6, length(new.sequence::text)), '0');
    RETURN new;
END
$$;

ALTER TABLE legal_entities DROP COLUMN last_sequence;
