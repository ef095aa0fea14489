"""The per-deployment consumers of the WORK streams; a restart of NATS loses them."""

from __future__ import annotations

import json

import structlog
from busbar_errors import Unavailable
from busbar_messaging import topology
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError
from nats.js.errors import NotFoundError

log = structlog.get_logger()

_TIMEOUT_S = 2.0
_STREAM_NOT_FOUND = 10059
_NAMES_MAX = 10_000


class WorkQueues:
    """Compares what exists with what is wanted, and makes up the difference."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._jetstream = client.jetstream(timeout=_TIMEOUT_S)

    async def ensure(
        self,
        regions: frozenset[str],
        wanted: frozenset[tuple[str, str]],
        declared: frozenset[str],
    ) -> None:
        """Create missing queues; delete those of deployments that are not declared any more."""
        for region in sorted(regions):
            here = {name for at, name in wanted if at == region}
            try:
                await self._ensure_in(region, here, declared)
            except (NatsError, JetStreamError, TimeoutError, OSError) as error:
                raise Unavailable(f"work queues of region {region}: {error!r}") from error

    async def _ensure_in(self, region: str, wanted: set[str], declared: frozenset[str]) -> None:
        stream = topology.work_stream(region).name
        there = await self._durables(stream)
        specs = {name: topology.work_consumer(region, name) for name in wanted}
        for name, spec in specs.items():
            if spec.durable not in there:
                await self._jetstream.add_consumer(stream, spec.config())
                log.info("work queue created", region=region, deployment=name)
        kept = {topology.work_consumer(region, name).durable for name in declared}
        for durable in sorted(there - kept):
            await self._delete(stream, durable)

    async def _delete(self, stream: str, durable: str) -> None:
        try:
            await self._jetstream.delete_consumer(stream, durable)
        except NotFoundError:
            return
        log.info("work queue deleted", stream=stream, consumer=durable)

    async def _durables(self, stream: str) -> set[str]:
        """Names of a stream's consumers; one small request, unlike their full descriptions."""
        names = set[str]()
        while len(names) < _NAMES_MAX:
            request = json.dumps({"offset": len(names)}).encode()
            reply = await self._client.request(
                f"$JS.API.CONSUMER.NAMES.{stream}", request, timeout=_TIMEOUT_S
            )
            answer = json.loads(reply.data or b"{}")
            if "error" in answer:
                raise Unavailable(f"{stream}: {answer['error'].get('description', 'no answer')}")
            page = answer.get("consumers") or []
            names.update(page)
            if not page or len(names) >= answer.get("total", 0):
                break
        return names
