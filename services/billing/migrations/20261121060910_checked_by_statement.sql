-- migrate:up

-- A foreign key is checked row by row, which cost a quarter of a posting. Tenants with an account and
-- price books are never deleted, so it is the same to check a statement's rows together, once.
CREATE FUNCTION require_known_tenants_and_prices() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    stray record;
BEGIN
    SELECT i.tenant_id, i.price_version INTO stray
    FROM (SELECT DISTINCT tenant_id, price_version FROM inserted) AS i
    LEFT JOIN tenants AS t ON t.tenant_id = i.tenant_id
    LEFT JOIN price_books AS b ON b.version = i.price_version
    WHERE t.tenant_id IS NULL OR b.version IS NULL
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'usage record: no tenant %, or no price book %',
            stray.tenant_id, stray.price_version
            USING ERRCODE = 'foreign_key_violation';
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER usage_records_1_refer_to_known
AFTER INSERT ON usage_records
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION require_known_tenants_and_prices();

CREATE FUNCTION require_known_tenants() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    stray text;
BEGIN
    SELECT i.tenant_id INTO stray
    FROM (SELECT DISTINCT tenant_id FROM inserted WHERE tenant_id IS NOT NULL) AS i
    LEFT JOIN tenants AS t ON t.tenant_id = i.tenant_id
    WHERE t.tenant_id IS NULL
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'transfer: no tenant %', stray USING ERRCODE = 'foreign_key_violation';
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER transfers_1_refer_to_known
AFTER INSERT ON transfers
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION require_known_tenants();

ALTER TABLE usage_records
DROP CONSTRAINT usage_records_tenant_id_fkey,
DROP CONSTRAINT usage_records_price_version_fkey;
ALTER TABLE transfers DROP CONSTRAINT transfers_tenant_id_fkey;

-- migrate:down

ALTER TABLE usage_records
ADD CONSTRAINT usage_records_tenant_id_fkey
FOREIGN KEY (tenant_id) REFERENCES tenants (tenant_id),
ADD CONSTRAINT usage_records_price_version_fkey
FOREIGN KEY (price_version) REFERENCES price_books (version);
ALTER TABLE transfers
ADD CONSTRAINT transfers_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES tenants (tenant_id);
DROP TRIGGER transfers_1_refer_to_known ON transfers;
DROP TRIGGER usage_records_1_refer_to_known ON usage_records;
DROP FUNCTION require_known_tenants();
DROP FUNCTION require_known_tenants_and_prices();
