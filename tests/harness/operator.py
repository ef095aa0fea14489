"""The operator's side of a running platform, over its admin APIs."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from harness.bundles import Made
from harness.polling import eventually

Json = dict[str, Any]

PAID_IN_NANOS = 10**10
"""What each customer of a test pays in."""
KNOWN_WITHIN_S, WHOLE_WITHIN_S, PRICES_WITHIN_S = 30, 90, 40
DEMO_MODELS = sorted(
    place.name
    for place in (Path(__file__).parents[2] / "deploy/demo/models").iterdir()
    if place.is_dir()
)


def edge(http: str, key: str) -> httpx.AsyncClient:
    """A customer's client at a gateway."""
    headers = {"authorization": f"Bearer {key}"}
    return httpx.AsyncClient(
        base_url=http, headers=headers, timeout=30, trust_env=False, verify=False
    )


async def status(client: httpx.AsyncClient, path: str) -> int:
    """What a GET is answered with; 0 when nobody is there."""
    try:
        return (await client.get(path)).status_code
    except httpx.HTTPError:
        return 0


@dataclass(frozen=True)
class Customer:
    """A tenant made for one test, with one key."""

    tenant_id: str
    key_id: str
    key: str


class Operator:
    """Calls the admin APIs of billing, scheduler and telemetry with the operator's token."""

    def __init__(self, endpoints: Json) -> None:
        self._admin: dict[str, str] = endpoints["admin"]
        self._http: str = endpoints["http"]
        self._keys: dict[str, str] = endpoints["keys"]
        self._headers = {"authorization": f"Bearer {self._keys['operator']}"}

    async def call(self, service: str, method: str, path: str, **options: Any) -> httpx.Response:
        """One call; the response is returned whatever its status."""
        async with httpx.AsyncClient(
            headers=self._headers,
            timeout=30,
            trust_env=False,
            verify=False,  # there is no TLS; reading all those CAs takes 45 ms of CPU each time
        ) as client:
            return await client.request(method, self._admin[service] + path, **options)

    async def whole(self) -> None:
        """Wait until every demo model serves and billing answers: a fault may have come before."""
        await self.serves(*DEMO_MODELS)
        await self.billing_answers(within_s=WHOLE_WITHIN_S)

    async def serves(self, *names: str) -> None:
        """Wait until the gateway has heard that these models take requests; the scheduler knows it
        before."""
        async with edge(self._http, self._keys["demo"]) as client:

            async def unready() -> list[str]:
                paths = {name: f"/v2/models/{name}/ready" for name in names}
                return [n for n, p in paths.items() if await status(client, p) != HTTPStatus.OK]

            what = f"{', '.join(names)} are ready"
            await eventually(
                unready, within_s=WHOLE_WITHIN_S, what=what, until=lambda left: not left
            )

    async def json(self, service: str, method: str, path: str, **options: Any) -> Json:
        """One call that must succeed."""
        response = await self.call(service, method, path, **options)
        assert response.is_success, f"{method} {path}: {response.status_code} {response.text}"
        return response.json() if response.content else {}

    async def push(self, made: Made) -> Json:
        """Push a bundle, sealed by a key that the platform trusts."""
        for sha256, content in made.chunks.items():
            path = f"/admin/v1/chunks?sha256={sha256.hex()}"
            await self.json("scheduler", "POST", path, content=content)
        path = f"/admin/v1/bundles/{made.digest}"
        return await self.json("scheduler", "PUT", path, json=made.body)

    async def billing_answers(self, *, within_s: float) -> None:
        """Wait until billing's admin API reaches its database again."""

        async def look() -> bool:
            try:
                return (await self.call("billing", "GET", "/admin/v1/tenants")).is_success
            except httpx.HTTPError:
                return False

        await eventually(look, within_s=within_s, what="billing answers")

    async def prices(self, tenant_id: str, classes: Json) -> None:
        """Give a tenant prices of its own, and wait until they hold."""
        path, wanted = "/admin/v1/prices", {"tenant_id": tenant_id, "classes": classes}
        published = await self.json("billing", "POST", path, json=wanted)

        async def holding() -> list[int]:
            listed = (await self.json("billing", "GET", path))["items"]
            return [one["version"] for one in listed if one["in_force"]]

        await eventually(
            holding,
            within_s=PRICES_WITHIN_S,
            what="the prices hold",
            until=lambda versions: published["version"] in versions,
        )

    async def customer(self, deployments: list[str] | None = None) -> Customer:
        """A fresh tenant with credit and a key."""
        name = f"test-{secrets.token_hex(4)}"
        tenant = await self.json("billing", "POST", "/admin/v1/tenants", json={"name": name})
        tenant_id: str = tenant["tenant_id"]
        await self.json(
            "billing",
            "POST",
            f"/admin/v1/tenants/{tenant_id}/topups",
            json={"amount_nanos": PAID_IN_NANOS, "currency": "USD", "reference": name},
        )
        key = await self.key(tenant_id, deployments)
        return Customer(tenant_id, key["key_id"], key["key"])

    async def key(self, tenant_id: str, deployments: list[str] | None = None) -> Json:
        """One more key for a tenant, known at the gateway; the answer holds `key_id` and `key`."""
        made = await self.new_key(tenant_id, deployments)
        await self.known(made["key"], self._http)
        return made

    async def new_key(self, tenant_id: str, deployments: list[str] | None = None) -> Json:
        """One more key for a tenant, of which no gateway may have heard yet."""
        path = f"/admin/v1/tenants/{tenant_id}/keys"
        body = {"name": "test", "deployments": deployments or []}
        return await self.json("billing", "POST", path, json=body)

    async def known(self, key: str, http: str) -> None:
        """Wait until a gateway has heard of a key: it may take a second, and a request less."""

        unknown = (0, HTTPStatus.UNAUTHORIZED)
        async with edge(http, key) as client:
            await eventually(
                lambda: status(client, "/v1/models"),
                within_s=KNOWN_WITHIN_S,
                what="the gateway knows the key",
                until=lambda seen: seen not in unknown,
            )

    async def usage(self, tenant_id: str) -> list[Json]:
        """All usage of a tenant, newest first."""
        found: list[Json] = []
        cursor: str | None = None
        while True:
            params = {"tenant_id": tenant_id, "limit": 500}
            page = await self.json(
                "billing",
                "GET",
                "/admin/v1/usage",
                params={**params, **({"cursor": cursor} if cursor else {})},
            )
            found += page["items"]
            cursor = page.get("next_cursor")
            if not cursor:
                return found

    async def usage_of(self, request_id: str, *, within_s: float = 10) -> Json:
        """The posted usage of one request, waiting until it is posted."""

        async def look() -> Json | None:
            path = f"/admin/v1/usage/{request_id}"
            response = await self.call("billing", "GET", path)
            return response.json() if response.is_success else None

        found = await eventually(look, within_s=within_s, what=f"usage of {request_id}")
        assert found is not None
        return found

    async def transfers(self, request_id: str) -> list[Json]:
        """The ledger transfers behind one request, each with its postings."""
        params = {"request_id": request_id}
        page = await self.json("billing", "GET", "/admin/v1/ledger", params=params)
        return page["items"]

    async def balance(self, tenant_id: str) -> int:
        """What a tenant has, held in leases or not, in nanos."""
        path = f"/admin/v1/tenants/{tenant_id}/balance"
        return int((await self.json("billing", "GET", path))["balance_nanos"])
