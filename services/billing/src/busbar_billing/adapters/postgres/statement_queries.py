"""The statements of SQL behind statements.

`included` is what belongs on a statement. Its arguments: $1 the tenant, $2 the
first transfer id that can matter, $3 the statement's cut, $4 the end of its
month, $5 and $6 the cut and the end of the statement before it, NULL for the
first one, $7 the first transfer id that cannot matter any more. A charge and
its void are dated by the request's admission (a gateway whose clock is ahead
cannot date one after its posting), anything else by its posting. All of it is
put together from constants.
"""

from __future__ import annotations

from busbar_billing.adapters.postgres.warrants import SINCE

_FROM = ">= $2"
_BETWEEN = ">= $2 AND {0}.transfer_id < $7"
_MOVED = """
    moved AS MATERIALIZED (
        SELECT
            t.transfer_id, t.kind, t.request_id, t.reason, t.posted_at,
            least(u.admitted_at, t.posted_at) AS dated_at, n.amount_nanos
        FROM transfers AS t
        LEFT JOIN usage_records AS u
        ON u.request_id = t.request_id AND t.kind IN ('charge', 'void')
        LEFT JOIN (
            SELECT p.transfer_id, sum(p.amount_nanos) AS amount_nanos
            FROM postings AS p
            WHERE p.transfer_id {p} AND p.account_id = ANY(ARRAY(
                SELECT a.account_id FROM accounts AS a WHERE a.tenant_id = $1
            ))
            GROUP BY p.transfer_id
        ) AS n ON n.transfer_id = t.transfer_id
        WHERE t.tenant_id = $1 AND t.transfer_id {t}
    )
"""
_INCLUDED = f"""
    WITH {_MOVED.format(p=_BETWEEN.format("p"), t=_BETWEEN.format("t"))},
    included AS MATERIALIZED (
        SELECT * FROM moved
        WHERE posted_at < $3 AND dated_at < $4
        AND ($5::timestamptz IS NULL OR NOT (posted_at < $5 AND dated_at < $6::timestamptz))
    ),
    -- Charges that stand: those without their void on the same statement.
    standing AS MATERIALIZED (
        SELECT c.request_id, c.dated_at, c.amount_nanos
        FROM included AS c
        WHERE c.kind = 'charge' AND NOT EXISTS (
            SELECT FROM included AS v WHERE v.kind = 'void' AND v.request_id = c.request_id
        )
    )
"""  # noqa: S608
MOVEMENTS = f"""
    {_INCLUDED}
    SELECT
        m.kind, (m.dated_at AT TIME ZONE 'UTC')::date AS day,
        CASE WHEN m.kind = 'void' THEN '' ELSE m.reason END AS reason,
        m.kind = 'correction' AND EXISTS (
            SELECT FROM postings AS p INNER JOIN accounts AS a USING (account_id)
            WHERE p.transfer_id = m.transfer_id AND a.kind = 'payments_clearing'
        ) AS of_payment,
        sum(m.amount_nanos) AS amount_nanos, count(*) AS transfers
    FROM included AS m
    WHERE m.amount_nanos <> 0 AND m.kind <> 'charge' AND NOT (
        m.kind = 'void' AND EXISTS (
            SELECT FROM included AS c WHERE c.kind = 'charge' AND c.request_id = m.request_id
        )
    )
    GROUP BY 1, 2, 3, 4
    ORDER BY 2, 1, 3, 4
"""  # noqa: S608
CHARGES = f"""
    {_INCLUDED}
    SELECT
        u.deployment AS model, u.rated_class, u.price_version, s.dated_at < $8 AS late,
        count(*) AS requests, sum(s.amount_nanos) AS amount_nanos,
        sum(u.input_tokens) AS input_tokens, sum(u.cached_tokens) AS cached_tokens,
        sum(u.output_tokens) AS output_tokens, sum(u.compute_us) AS compute_us,
        sum(u.request_bytes + u.response_bytes) AS bytes
    FROM standing AS s
    INNER JOIN usage_records AS u USING (request_id)
    GROUP BY 1, 2, 3, 4
    ORDER BY 1, 2, 3, 4
"""  # noqa: S608
# How much of what was used lies in each step: a record used from `before` to `before` + `quantity`.
GRADUATED = f"""
    {_INCLUDED}
    SELECT
        u.deployment AS model, s.dated_at < $8 AS late, p.component, p.price_nanos, p.per_units,
        sum(
            least(r.before + r.quantity, coalesce(p.ends, r.before + r.quantity))
            - greatest(r.before, p.begins)
        ) AS quantity
    FROM standing AS s
    INNER JOIN usage_records AS u USING (request_id)
    CROSS JOIN LATERAL jsonb_each(u.consumed) AS c (component, used)
    CROSS JOIN LATERAL (
        SELECT (c.used ->> 'before')::numeric, (c.used ->> 'quantity')::numeric
    ) AS r (before, quantity)
    INNER JOIN unnest(
        $9::int8[], $10::text[], $11::text[], $12::numeric[], $13::numeric[], $14::int8[],
        $15::int8[]
    ) AS p (version, price_class, component, begins, ends, price_nanos, per_units)
    ON p.version = u.price_version AND p.price_class = u.rated_class AND p.component = c.component
    WHERE r.before + r.quantity > p.begins AND (p.ends IS NULL OR r.before < p.ends)
    GROUP BY 1, 2, 3, 4, 5
"""  # noqa: S608
# What is held now, less what came after the statement: another way to its closing balance.
CLOSING = f"""
    WITH {_MOVED.format(p=_FROM, t=_FROM)}
    SELECT
        coalesce((
            SELECT sum(b.balance_nanos)
            FROM accounts AS a INNER JOIN account_balances AS b USING (account_id)
            WHERE a.tenant_id = $1
        ), 0)
        - coalesce((
            SELECT sum(amount_nanos) FROM moved WHERE NOT (posted_at < $3 AND dated_at < $4)
        ), 0)
"""  # noqa: S608
CURRENCY = "SELECT currency FROM tenants WHERE tenant_id = $1"
ADDRESSING = """
    SELECT
        t.created_at, coalesce(d.name, t.name) AS name,
        coalesce(d.address, '{}') AS address, coalesce(d.tax_id, '') AS tax_id,
        e.entity_id, e.name AS entity_name, e.address AS entity_address, e.tax_id AS entity_tax,
        e.tax_name, e.tax_ppm, e.tax_note
    FROM tenants AS t
    LEFT JOIN billing_details AS d USING (tenant_id)
    INNER JOIN legal_entities AS e ON e.entity_id = coalesce(d.entity_id, 'default')
    WHERE t.tenant_id = $1
"""
# The statement before one, whose cut and month bound it.
BEFORE = """
    SELECT * FROM statements
    WHERE kind = 'statement' AND tenant_id = $1 AND period_start < $2
    ORDER BY period_start DESC LIMIT 1
"""
OF_MONTH = """
    SELECT * FROM statements WHERE kind = 'statement' AND tenant_id = $1 AND period_start = $2
"""
# Each with the one before it, in the order of tenants and months.
AUDITED = f"""
    SELECT
        s.number, s.tenant_id, s.period_start, s.cut_at, s.closing_nanos, s.content,
        b.period_start AS before_start, b.cut_at AS before_cut, b.closing_nanos AS before_closing,
        w.digest AS warrant, s.issued_at >= {SINCE} AS to_be_vouched
    FROM statements AS s
    LEFT JOIN warrants AS w ON w.subject = 'statement ' || s.number
    LEFT JOIN LATERAL (
        SELECT p.period_start, p.cut_at, p.closing_nanos FROM statements AS p
        WHERE p.kind = 'statement' AND p.tenant_id = s.tenant_id
        AND p.period_start < s.period_start
        ORDER BY p.period_start DESC LIMIT 1
    ) AS b ON TRUE
    WHERE s.kind = 'statement' AND (s.tenant_id, s.period_start) > ($1, $2)
    ORDER BY s.tenant_id, s.period_start
    LIMIT $3
"""  # noqa: S608
AUDITED_NOTES = f"""
    SELECT s.*, w.digest AS warrant, s.issued_at >= {SINCE} AS to_be_vouched
    FROM statements AS s
    LEFT JOIN warrants AS w ON w.subject = 'statement ' || s.number
    WHERE s.kind = 'credit_note' AND s.number > $1
    ORDER BY s.number
    LIMIT $2
"""  # noqa: S608
BY_NUMBER = "SELECT * FROM statements WHERE number = $1"
PAGE = """
    SELECT * FROM statements
    WHERE ($1::text IS NULL OR tenant_id = $1) AND ($2::text IS NULL OR number < $2)
    ORDER BY number DESC
    LIMIT $3
"""
LAST = """
    SELECT * FROM statements WHERE kind = 'statement' AND tenant_id = $1
    ORDER BY period_start DESC LIMIT 1
"""
# The month after the last statement, or the one in which the tenant was made.
DUE = """
    SELECT t.tenant_id, next.month
    FROM tenants AS t
    LEFT JOIN LATERAL (
        SELECT s.period_start FROM statements AS s
        WHERE s.kind = 'statement' AND s.tenant_id = t.tenant_id
        ORDER BY s.period_start DESC LIMIT 1
    ) AS last ON TRUE
    CROSS JOIN LATERAL (
        SELECT coalesce((last.period_start + interval '1 month')::date, month_of(t.created_at))
    ) AS next (month)
    WHERE t.tenant_id > $2 AND next.month < $1
    ORDER BY t.tenant_id
    LIMIT $3
"""
# Never ON CONFLICT DO NOTHING: a number would be given to a row that is not kept.
ISSUE = """
    INSERT INTO statements (
        entity_id, kind, tenant_id, period_start, cut_at, closing_nanos, content
    )
    VALUES ($1, 'statement', $2, $3, $4, $5, $6)
    RETURNING *
"""
LOCK = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"
# The statement that a request's charge is on.
_HOLDS_IT = """
    s.tenant_id = c.tenant_id AND s.kind = 'statement' AND c.posted_at < s.cut_at
    AND least(u.admitted_at, c.posted_at)
    < (s.period_start + interval '1 month') AT TIME ZONE 'UTC'
    ORDER BY s.period_start
    LIMIT 1
"""
OF_CHARGE = f"""
    SELECT s.*
    FROM usage_records AS u
    INNER JOIN transfers AS c USING (transfer_id)
    CROSS JOIN statements AS s
    WHERE u.request_id = $1 AND {_HOLDS_IT}
"""  # noqa: S608
# Of many requests, those that are on one with credit notes.
NOTED_CHARGES = f"""
    SELECT u.request_id, on_it.number
    FROM usage_records AS u
    INNER JOIN transfers AS c USING (transfer_id)
    CROSS JOIN LATERAL (SELECT s.number FROM statements AS s WHERE {_HOLDS_IT}) AS on_it
    WHERE u.request_id = ANY($1::uuid[])
    AND EXISTS (SELECT FROM statements AS n WHERE n.corrects = on_it.number)
    ORDER BY u.request_id
"""  # noqa: S608
# What came back of single charges that stand on a statement. $1 the tenant, $2 the first transfer
# that can be on none before, $3 and $4 the statement's cut and its month's end, $5 and $6 those of
# the one before.
_ON_IT = """
    {0}.posted_at < $3 AND least(u.admitted_at, {0}.posted_at) < $4
    AND ($5::timestamptz IS NULL OR NOT (
        {0}.posted_at < $5 AND least(u.admitted_at, {0}.posted_at) < $6::timestamptz
    ))
"""
SINGLE = f"""
    SELECT coalesce(sum(p.amount_nanos), 0)
    FROM transfers AS g
    INNER JOIN usage_records AS u USING (request_id)
    INNER JOIN transfers AS c ON c.transfer_id = u.transfer_id
    INNER JOIN postings AS p ON p.transfer_id = g.transfer_id
    INNER JOIN accounts AS a USING (account_id)
    WHERE g.tenant_id = $1 AND g.transfer_id >= $2 AND g.kind IN ('refund', 'correction', 'void')
    AND a.tenant_id = $1 AND {_ON_IT.format("c")}
    AND NOT EXISTS (
        SELECT FROM transfers AS v
        WHERE v.request_id = g.request_id AND v.kind = 'void' AND {_ON_IT.format("v")}
    )
"""  # noqa: S608
NOTED = "SELECT * FROM statements WHERE corrects = $1 AND reference = $2"
CREDITED = "SELECT coalesce(sum(closing_nanos), 0) FROM statements WHERE corrects = $1"
NOTE = """
    INSERT INTO statements (
        entity_id, kind, tenant_id, period_start, cut_at, corrects, closing_nanos, reference,
        transfer_id, content
    )
    SELECT
        entity_id, 'credit_note', tenant_id, period_start, clock_timestamp(), number, $2, $3, $4, $5
    FROM statements
    WHERE number = $1
    RETURNING *
"""
