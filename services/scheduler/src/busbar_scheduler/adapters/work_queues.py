"""The per-deployment consumers of the WORK streams; a restart of NATS loses them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable

import structlog
from busbar_errors import Unavailable
from busbar_messaging import topology
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError
from nats.js.errors import NotFoundError

from busbar_scheduler.domain.queues import QueueNames, WantedQueues

log = structlog.get_logger()

_TIMEOUT_S = 2.0
_NAMES_MAX = 10_000
_SECRET_BYTES = 16


class WorkQueues:
    """Compares what exists with what is wanted, and makes up the difference.

    A queue's name is kept nowhere but at the stream and in the placements of who may pull from it.
    One that nobody is told at present is not given out again: who was told it once may have left
    while the region was dark.
    """

    def __init__(
        self,
        client: Client,
        new_secret: Callable[[], str] = lambda: secrets.token_hex(_SECRET_BYTES),
    ) -> None:
        self._client = client
        self._jetstream = client.jetstream(timeout=_TIMEOUT_S)
        self._new_secret = new_secret
        self._outlived = frozenset[tuple[str, str]]()
        """Also those of regions that were dark when a site gave a deployment up."""

    async def ensure(self, wanted: WantedQueues) -> QueueNames:
        """Create missing queues, delete those that shall not be; returns the names to tell."""
        self._outlived |= wanted.outlived
        names = {(at, topology.deployment_of_queue(name)): name for at, name in wanted.told}
        for region in sorted(wanted.regions):
            try:
                found = await self._ensure_in(region, wanted)
            except (NatsError, JetStreamError, TimeoutError, OSError) as error:
                raise Unavailable(f"work queues of region {region}: {error!r}") from error
            self._outlived = frozenset(one for one in self._outlived if one[0] != region)
            names = {queue: name for queue, name in names.items() if queue[0] != region}
            names |= {(region, deployment): name for deployment, name in found.items()}
        return names

    async def _ensure_in(self, region: str, wanted: WantedQueues) -> dict[str, str]:
        """The names to tell by deployment.

        Work waits in the stream while its queue is made anew under another name. What was taken
        and not acknowledged before comes out again; gateways count one attempt's frames once.
        """
        stream = topology.work_stream(region).name
        there = await self._durables(stream)
        outlived = {name for at, name in self._outlived if at == region}
        kept = {name for name in there - outlived if _stays(region, name, wanted)}
        for durable in sorted(there - kept):
            await self._delete(stream, durable)
        names = {topology.deployment_of_queue(name): name for name in kept}
        for deployment in sorted(name for at, name in wanted.held if at == region):
            if deployment not in names:
                plain = (region, deployment) in wanted.plain
                spec = topology.work_consumer(
                    region,
                    deployment,
                    "" if plain else topology.sealed_queue(deployment, self._new_secret()),
                )
                await self._jetstream.add_consumer(stream, spec.config())
                names[deployment] = spec.durable
                log.info("work queue created", region=region, deployment=deployment)
        return {name: queue for name, queue in names.items() if topology.is_sealed(queue)}

    async def _delete(self, stream: str, durable: str) -> None:
        try:
            await self._jetstream.delete_consumer(stream, durable)
        except NotFoundError:
            return
        deployment = topology.deployment_of_queue(durable)
        log.info("work queue deleted", stream=stream, deployment=deployment)

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


def _stays(region: str, name: str, wanted: WantedQueues) -> bool:
    queue = region, topology.deployment_of_queue(name)
    if queue[1] not in wanted.declared:
        return False
    if queue not in wanted.held:
        return True
    if queue in wanted.plain:
        return not topology.is_sealed(name)
    return (region, name) in wanted.told
