"""Billing as a process, and what its neighbours do to it."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from busbar_billing.adapters.postgres.warrants import Warrants
from busbar_billing.domain.warrants import warrant_key
from busbar_contracts.gateway.v1 import usage_pb2
from busbar_messaging import topology
from busbar_runtime.child import tethered
from busbar_runtime.ports import LOOPBACK, PortPool
from busbar_runtime.pytest_plugin import Database, NatsServer
from harness.polling import eventually
from nats.js.client import JetStreamContext
from usage_records import answered

TOKEN = "operator-token-of-the-tests"
STRIPE_SECRET = "whsec_of-the-tests"
HMAC_SECRET = "hmac-secret-of-the-tests"
WARRANT_KEY = warrant_key(HMAC_SECRET)
WARRANTS = Warrants(WARRANT_KEY)
"""As the running service vouches for what it posts."""
READY_S = 90  # as long as the launcher gives a service
ANSWER_S = 30
POSTED_S = 30
PUBLISHED_S = 30
PRICES_S = 30
Json = dict[str, Any]


@dataclass
class Service:
    """The running service, and what tests ask of it."""

    environment: Mapping[str, str]
    http_url: str
    account_url: str
    ops_url: str
    client: httpx.AsyncClient
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the process and wait until it is ready."""
        self.process = await asyncio.create_subprocess_exec(
            *tethered([sys.executable, "-m", "busbar_billing"]),
            env={**os.environ, **self.environment},
        )
        await eventually(self.is_ready, within_s=READY_S, what="billing is ready")

    async def is_ready(self) -> bool:
        """What /readyz says; False when nobody answers."""
        if self.process is not None:
            assert self.process.returncode is None, "the service ended by itself"
        try:
            return (await self.client.get(f"{self.ops_url}/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    async def end(self, number: int = signal.SIGTERM) -> int:
        """Signal the process and wait for its exit status."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 15)

    async def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One call of the admin API."""
        return await self.client.request(method, f"{self.http_url}/admin/v1{path}", **options)

    async def json(self, method: str, path: str, **options: Any) -> Json:
        """One call that must succeed."""
        answer = await self.call(method, path, **options)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    async def tenant(self) -> str:
        """A fresh tenant."""
        name = f"Tests Ltd {secrets.token_hex(6)}"
        made = await self.json("POST", "/tenants", json={"name": name})
        return made["tenant_id"]

    async def balance(self, tenant_id: str) -> int:
        """What the tenant has, held in leases or not."""
        return (await self.json("GET", f"/tenants/{tenant_id}/balance"))["balance_nanos"]

    async def usage(self, tenant_id: str) -> list[Json]:
        """Its usage, newest first."""
        page = await self.json("GET", "/usage", params={"tenant_id": tenant_id, "limit": 1000})
        return page["items"]

    async def posted(self, tenant_id: str, count: int) -> list[Json]:
        """Its usage, once there are `count` records."""
        return await eventually(
            lambda: self.usage(tenant_id),
            within_s=POSTED_S,
            what=f"{count} records are posted",
            until=lambda found: len(found) >= count,
        )

    async def prices_hold(self, version: int) -> None:
        """Wait until a version of the price book is in force."""

        async def holding() -> list[int]:
            listed = (await self.json("GET", "/prices"))["items"]
            return [one["version"] for one in listed if one["in_force"]]

        await eventually(
            holding,
            within_s=PRICES_S,
            what=f"prices {version} hold",
            until=lambda versions: version in versions,
        )

    async def transfers(self, **params: str) -> list[Json]:
        """Transfers with their postings, newest first."""
        page = await self.json("GET", "/ledger", params={**params, "limit": "1000"})
        return page["items"]

    async def metric(self, name: str) -> float:
        """Sum of a metric over its labels."""
        text = (await self.client.get(f"{self.ops_url}/metrics")).text
        lines = [line for line in text.splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@asynccontextmanager
async def running(environment: Mapping[str, str], ports: PortPool) -> AsyncIterator[Service]:
    """The service with this environment, until the end of the block."""
    http_port, account_port, ops_port = ports.take(), ports.take(), ports.take()
    headers = {"authorization": f"Bearer {TOKEN}"}
    # Connections end at the server after 5 s without a request, and by default here at that moment.
    limits = httpx.Limits(keepalive_expiry=2.0)
    async with httpx.AsyncClient(
        headers=headers, timeout=ANSWER_S, trust_env=False, verify=False, limits=limits
    ) as client:
        service = Service(
            {
                **environment,
                "BUSBAR_OPERATOR_TOKEN": TOKEN,
                "BUSBAR_KEY_HMAC_SECRET": HMAC_SECRET,
                "BUSBAR_STRIPE_WEBHOOK_SECRET": STRIPE_SECRET,
                "BUSBAR_WEBHOOK_ALLOW_HTTP": "true",
                "BUSBAR_WEBHOOK_ALLOWED_NETWORKS": '["127.0.0.0/8"]',
                "BUSBAR_LOG_LEVEL": "warning",
                "BUSBAR_HTTP_PORT": str(http_port),
                "BUSBAR_ACCOUNT_PORT": str(account_port),
                "BUSBAR_OPS_PORT": str(ops_port),
            },
            f"http://{LOOPBACK}:{http_port}",
            f"http://{LOOPBACK}:{account_port}",
            f"http://{LOOPBACK}:{ops_port}",
            client,
        )
        await service.start()
        try:
            yield service
        finally:
            await service.end(signal.SIGKILL)


def environment_of(nats_server: NatsServer, database: Database) -> dict[str, str]:
    """What the service needs, but for its ports."""
    return {
        **nats_server.environment("billing"),
        "BUSBAR_POSTGRES_DSN": database.billing_dsn,
        # Tests write tenants with a past, and close their months themselves.
        "BUSBAR_CLOSE_AUTOMATICALLY": "false",
    }


@dataclass(frozen=True)
class Gateway:
    """What a gateway does to the USAGE stream."""

    jetstream: JetStreamContext

    async def publish(
        self,
        *records: usage_pb2.UsageRecord,
        voids: tuple[usage_pb2.UsageVoid, ...] = (),
    ) -> int:
        """Commit one batch, never deduplicated; returns its sequence in the stream."""
        batch = usage_pb2.UsageRecorded(gateway_id="g1", records=records, voids=voids)
        return await self.publish_raw(batch.SerializeToString())

    async def publish_raw(self, payload: bytes) -> int:
        """Put any bytes into the stream; again under the same id while it is not known to be there,
        as gateways do."""
        headers = {"Nats-Msg-Id": secrets.token_hex(8)}
        subject = topology.usage_subject("r1", "g1")

        async def publish() -> int:
            try:
                return (await self.jetstream.publish(subject, payload, headers=headers)).seq
            except TimeoutError:
                return 0

        return await eventually(publish, within_s=PUBLISHED_S, what="usage is in the stream")

    def record(self, tenant_id: str, **changes: Any) -> usage_pb2.UsageRecord:
        """A record of 1,000 input tokens at 100 nanos: 100,000 nanos."""
        return answered(tenant_id, **changes)

    def void(self, record: usage_pb2.UsageRecord) -> usage_pb2.UsageVoid:
        """What takes the record back."""
        return usage_pb2.UsageVoid(
            request_id=record.request_id, tenant_id=record.tenant_id, reason="not delivered"
        )
