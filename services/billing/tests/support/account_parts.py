"""A customer with something of each kind, and what it asks of the customers' API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
from api_document import Operation, Request, operations
from billing_parts import Gateway, Json, Service

PREFIX = "/account/v1"
WEB_PAGE = "https://shop.example/paid"


@dataclass
class Account:
    """A tenant with a key of each scope, and one thing of each kind."""

    tenant_id: str
    url: str
    keys: dict[str, Json]
    project_id: str
    request_id: str
    transfer_id: str
    statement: str
    delivery: Json
    client: httpx.AsyncClient

    async def call(
        self, method: str, path: str, scope: str = "administer", **options: Any
    ) -> httpx.Response:
        """One call with the key of that scope."""
        headers = {"authorization": f"Bearer {self.keys[scope]['key']}"}
        url = f"{self.url}{PREFIX}{path}"
        return await self.client.request(method, url, headers=headers, **options)

    async def json(self, method: str, path: str, **options: Any) -> Json:
        """One call that must succeed."""
        answer = await self.call(method, path, **options)
        assert answer.is_success, answer.text
        return answer.json()

    async def send(self, request: Request, scope: str = "administer") -> httpx.Response:
        """One made-up request."""
        body = {} if request.json is None else {"json": request.json}
        return await self.call(request.method, request.url, scope, params=request.query, **body)

    @property
    def ids(self) -> list[str]:
        """What names something of this tenant's."""
        keys = [key["key_id"] for key in self.keys.values()]
        prefix = self.keys["serve"]["prefix"]
        named = [self.tenant_id, self.project_id, self.request_id, self.transfer_id, self.statement]
        sent = [self.delivery[name] for name in ("endpoint_id", "delivery_id", "message_id")]
        return [*named, *sent, *keys, prefix]

    @property
    def known(self) -> Mapping[str, Any]:
        """Values of this tenant's for what requests name."""
        return {
            "tenant_id": self.tenant_id,
            "project_id": self.project_id,
            "key_id": self.keys["serve"]["key_id"],
            "request_id": self.request_id,
            "transfer_id": self.transfer_id,
            "number": self.statement,
            "endpoint_id": self.delivery["endpoint_id"],
            "delivery_id": self.delivery["delivery_id"],
            "url": WEB_PAGE,
            "success_url": WEB_PAGE,
            "cancel_url": WEB_PAGE,
        }


async def open_account(billing: Service, gateway: Gateway, admin: asyncpg.Connection) -> Account:
    """Make one, by the operator."""
    tenant = await billing.tenant()
    last_month = (datetime.now(UTC).replace(day=1) - timedelta(days=1)).replace(day=1)
    aged = "UPDATE tenants SET created_at = $2 WHERE tenant_id = $1"
    await admin.execute(aged, tenant, last_month)
    project = await billing.json("POST", f"/tenants/{tenant}/projects", json={"name": "web"})
    keys = {
        scope: await billing.json(
            "POST", f"/tenants/{tenant}/keys", json={"name": scope, "scopes": [scope]}
        )
        for scope in ("serve", "read_usage", "administer")
    }
    body = {"amount_nanos": 10**9, "currency": "USD", "reference": tenant}
    paid = await billing.json("POST", f"/tenants/{tenant}/topups", json=body)
    record = gateway.record(tenant, key_id=keys["serve"]["key_id"])
    await gateway.publish(record)
    await billing.posted(tenant, 1)
    month = {"month": f"{last_month:%Y-%m}"}
    closed = await billing.json("POST", f"/tenants/{tenant}/statements", json=month)
    # Nobody takes messages there: they are refused, and wait for the next attempt.
    hook = {"url": f"{billing.ops_url}/nowhere", "event_types": ["statement.issued"]}
    made = await billing.json("POST", f"/tenants/{tenant}/webhooks", json=hook)
    ping = f"/tenants/{tenant}/webhooks/{made['endpoint_id']}/ping"
    return Account(
        tenant_id=tenant,
        url=billing.account_url,
        keys=keys,
        project_id=project["project_id"],
        request_id=f"req_{record.request_id.hex()}",
        transfer_id=paid["transfer_id"],
        statement=closed["number"],
        delivery=await billing.json("POST", ping),
        client=billing.client,
    )


def every_operation(document: Json) -> Iterator[Operation]:
    """Every operation of the customers' API."""
    return operations(document, PREFIX)
