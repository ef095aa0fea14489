"""Facts for tenants' webhooks, written in the transaction that makes them facts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from busbar_billing.adapters.postgres.database import Connection
from busbar_billing.domain.webhooks import WAITING_PER_ENDPOINT_MAX, Notice

# A message that nobody wants to know of is not stored.
_PUT = """
    WITH told AS MATERIALIZED (
        SELECT
            'msg_' || replace(uuidv7()::text, '-', '') AS message_id,
            n.tenant_id, n.type, n.payload
        FROM unnest($1::text[], $2::text[], $3::text[]) AS n (tenant_id, type, payload)
    ), wanted AS MATERIALIZED (
        SELECT told.*, e.endpoint_id
        FROM told
        INNER JOIN webhook_endpoints AS e USING (tenant_id)
        WHERE e.disabled_at IS NULL
        AND (e.event_types = '{}' OR told.type = ANY(e.event_types))
        AND $4 > (
            SELECT count(*) FROM webhook_deliveries AS d
            WHERE d.endpoint_id = e.endpoint_id AND d.state = 'pending'
        )
    ), stored AS (
        INSERT INTO webhook_messages (message_id, tenant_id, type, payload)
        SELECT DISTINCT message_id, tenant_id, type, payload FROM wanted
    )
    INSERT INTO webhook_deliveries (message_id, endpoint_id, tenant_id)
    SELECT message_id, endpoint_id, tenant_id FROM wanted
"""


async def put_notices(connection: Connection, notices: Sequence[Notice]) -> None:
    """Queue notices for whoever wants to know; in the caller's transaction, or not at all."""
    if not notices:
        return
    now = datetime.now(UTC)
    await connection.execute(
        _PUT,
        [one.tenant_id for one in notices],
        [one.type.value for one in notices],
        [write_payload(one, now) for one in notices],
        WAITING_PER_ENDPOINT_MAX,
    )


def write_payload(notice: Notice, moment: datetime) -> str:
    """A message's body, as https://www.standardwebhooks.com lays it out."""
    body = {
        "type": notice.type.value,
        "timestamp": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": dict(notice.data),
    }
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))
