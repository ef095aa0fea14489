"""Every subject, stream, consumer and bucket of the bus, as values.

No other file spells a `busbar.` subject. Streams, buckets and object stores are
created by `python -m busbar_messaging.provision` and by nothing else; services
verify at boot that what they need is there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal

from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
"""What regions, sites, nodes, deployments, bundles and gateways may be called."""

MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""`max_payload` of the NATS servers."""
MAX_FRAME_PAYLOAD_BYTES = MAX_MESSAGE_BYTES - 64 * 1024
"""Largest inference payload that fits a message beside its envelope."""

_NAME = re.compile(NAME_PATTERN)
_MIB = 1024 * 1024

Storage = Literal["memory", "file"]


def checked_name(name: str) -> str:
    """Return `name` when it may stand in a subject; raise ValueError otherwise."""
    if not _NAME.match(name):
        raise ValueError(f"{name!r} is not a name: use {NAME_PATTERN}")
    return name


@dataclass(frozen=True, slots=True)
class NodeId:
    """A node's place in the fleet: region, site, node."""

    region: str
    site: str
    node: str

    def __post_init__(self) -> None:
        for part in (self.region, self.site, self.node):
            checked_name(part)

    @classmethod
    def parse(cls, text: str) -> NodeId:
        """Read "region.site.node" or "region/site/node"; raise ValueError otherwise."""
        parts = text.replace("/", ".").split(".")
        if len(parts) != 3:  # noqa: PLR2004
            raise ValueError(f"{text!r} is not region/site/node")
        return cls(*parts)

    @property
    def key(self) -> str:
        """The form used in bucket keys, subjects and messages: "region.site.node"."""
        return f"{self.region}.{self.site}.{self.node}"

    def __str__(self) -> str:
        return f"{self.region}/{self.site}/{self.node}"


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """A JetStream stream."""

    name: str
    subjects: tuple[str, ...]
    storage: Storage
    retention: Literal["limits", "workqueue"]
    max_age: timedelta
    max_bytes: int
    max_msgs_per_subject: int = -1
    duplicate_window: timedelta = timedelta(minutes=2)
    replicated: bool = True
    """False: there is one server where it lives."""
    region: str = ""
    """Where its servers are; "" is the first region, where the services are."""

    def config(self, replicas: int) -> StreamConfig:
        """The configuration that the server is given."""
        per_subject = self.max_msgs_per_subject > 0
        return StreamConfig(
            name=self.name,
            subjects=list(self.subjects),
            storage=StorageType(self.storage),
            retention=RetentionPolicy(self.retention),
            discard=DiscardPolicy.NEW if per_subject else DiscardPolicy.OLD,
            discard_new_per_subject=per_subject,
            max_msgs_per_subject=self.max_msgs_per_subject,
            max_age=self.max_age.total_seconds(),
            max_bytes=self.max_bytes,
            duplicate_window=min(self.duplicate_window, self.max_age).total_seconds(),
            num_replicas=replicas if self.replicated else 1,
            allow_direct=True,
        )


@dataclass(frozen=True, slots=True)
class BucketSpec:
    """A key-value bucket, history 1. `ttl` None keeps entries until they are deleted."""

    name: str
    storage: Storage
    ttl: timedelta | None = None
    max_bytes: int = 64 * _MIB


@dataclass(frozen=True, slots=True)
class ObjectStoreSpec:
    """An object store."""

    name: str
    max_bytes: int


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """A durable pull consumer, bounded in every direction."""

    stream: str
    durable: str
    filter_subject: str
    ack_wait: timedelta
    max_deliver: int
    max_ack_pending: int

    def config(self) -> ConsumerConfig:
        """The configuration that the server is given."""
        return ConsumerConfig(
            durable_name=self.durable,
            filter_subject=self.filter_subject,
            ack_policy=AckPolicy.EXPLICIT,
            deliver_policy=DeliverPolicy.ALL,
            ack_wait=self.ack_wait.total_seconds(),
            max_deliver=self.max_deliver,
            max_ack_pending=self.max_ack_pending,
        )


# --- domains -------------------------------------------------------------------------------------

HUB_DOMAIN = "hub"
"""Where all streams and buckets are but those of sites. At a hub it needs no name; from behind a
leaf node it does, for there the site's own JetStream is the nearest."""


def site_domain(region: str, site: str) -> str:
    """The JetStream of a site's leaf node."""
    return f"{checked_name(region)}_{checked_name(site)}"


def api_prefix(domain: str) -> str:
    """What requests to the JetStream of a domain begin with; "" is the nearest one."""
    return f"$JS.{domain}.API" if domain else "$JS.API"


ACKS = "$JS.ACK"
"""What the subjects begin with on which JetStream takes acknowledgements."""
LEAF_ACKS = "busbar.ack"
"""What they begin with instead for who is behind a leaf node; a hub's account maps them.

A hub tells its leaf nodes of each subject that it takes and they may publish. Of `ACKS` that would
be one for each consumer, by name, and a work queue's name is all that it takes to pull from it."""


def entry_subject(bucket: BucketSpec, key: str, domain: str) -> str:
    """Where an entry of a bucket is written."""
    entry = f"$KV.{bucket.name}.{key}"
    return f"{api_prefix(domain)}.{entry}" if domain else entry


# --- streams -------------------------------------------------------------------------------------


def work_stream(region: str) -> StreamSpec:
    """Interactive dispatch of one region. In memory: the gateway is the durable party."""
    return StreamSpec(
        name=f"WORK_{checked_name(region)}",
        subjects=(f"busbar.work.{region}.*",),
        storage="memory",
        retention="workqueue",
        max_age=timedelta(minutes=10),
        max_bytes=256 * _MIB,
        max_msgs_per_subject=10_000,
        region=region,
    )


def measured_stream(region: str, site: str) -> StreamSpec:
    """Cost records of one site."""
    return StreamSpec(
        name=f"WORK_MEASURED_{checked_name(region)}_{checked_name(site)}",
        subjects=(f"busbar.measured.{region}.{site}.*",),
        storage="file",
        retention="limits",
        max_age=timedelta(days=35),
        max_bytes=512 * _MIB,
    )


def site_measured_stream(region: str, site: str, epoch: int) -> StreamSpec:
    """Cost records of one site, at the site; the hub's stream of them is sourced from it.

    A hub skips what comes under a number that it has read already, so a stream that lost its
    end (a disk restored, a file cut short) is followed by one of the next epoch.
    """
    hub = measured_stream(region, site)
    return replace(hub, name=f"{hub.name}_{epoch}", replicated=False)


USAGE = StreamSpec(
    name="USAGE",
    subjects=("busbar.usage.*.*",),
    storage="file",
    retention="limits",
    max_age=timedelta(days=35),
    max_bytes=2048 * _MIB,
    duplicate_window=timedelta(minutes=10),
)
EVENTS = StreamSpec(
    name="EVENTS",
    subjects=("busbar.evt.*.v1.*",),
    storage="file",
    retention="limits",
    max_age=timedelta(days=7),
    max_bytes=256 * _MIB,
)
DLQ = StreamSpec(
    name="DLQ",
    subjects=("busbar.dlq.*.*",),
    storage="file",
    retention="limits",
    max_age=timedelta(days=30),
    max_bytes=256 * _MIB,
)

# --- buckets -------------------------------------------------------------------------------------

KEYS = BucketSpec("keys", "file")
TENANTS = BucketSpec("tenants", "file")
PRICES = BucketSpec("prices", "file")
DEPLOYMENTS = BucketSpec("deployments", "file")
BUNDLES = BucketSpec("bundles", "file")
SITES = BucketSpec("sites", "file")
PLACEMENTS = BucketSpec("placements", "file")
ROUTES = BucketSpec("routes", "file")
DEMAND = BucketSpec("demand", "file", ttl=timedelta(days=30))
LEADERS = BucketSpec("leaders", "file", ttl=timedelta(seconds=5))
NODES = BucketSpec("nodes", "memory", ttl=timedelta(minutes=5))
LEASES = BucketSpec("leases", "memory", ttl=timedelta(seconds=30))
CLAIMS = BucketSpec("claims", "memory", ttl=timedelta(seconds=15))
GATEWAYS = BucketSpec("gateways", "memory", ttl=timedelta(seconds=10))
IDEMPOTENCY_TTL = timedelta(hours=24)
IDEMPOTENCY_BYTES_MAX = 1024 * _MIB
IDEMPOTENCY = BucketSpec(
    "idempotency", "file", ttl=IDEMPOTENCY_TTL, max_bytes=IDEMPOTENCY_BYTES_MAX
)
BUCKETS = (
    KEYS,
    TENANTS,
    PRICES,
    DEPLOYMENTS,
    BUNDLES,
    SITES,
    PLACEMENTS,
    ROUTES,
    DEMAND,
    LEADERS,
    NODES,
    LEASES,
    CLAIMS,
    GATEWAYS,
    IDEMPOTENCY,
)

MODELS = ObjectStoreSpec("models", max_bytes=8 * 1024 * _MIB)
OBJECT_STORES = (MODELS,)

HEARTBEAT_INTERVAL = timedelta(seconds=1)
"""How often nodes and gateways write their lease."""
PULSE = "pulse"
"""The entry among the leases that every scheduler writes, so that silence of the bus is not taken
for silence of the nodes; see `hearing`."""
PULSE_INTERVAL = timedelta(seconds=0.5)
SUSPECT_AFTER = timedelta(seconds=4)
"""A node or gateway not heard of for this long gets no new work."""


# --- consumers -----------------------------------------------------------------------------------


_SEAL = "~"
"""Stands before the part of a queue's name that cannot be guessed; no deployment's name has it."""
_QUEUE_NAME = re.compile(r"work-([a-z0-9][a-z0-9_-]{0,62})(?:~[0-9a-f]{32})?")


def sealed_queue(deployment: str, secret: str) -> str:
    """The name of a work queue that only who is told can pull from; `secret`: 32 hex digits."""
    return queue_name(deployment, f"work-{deployment}{_SEAL}{secret}")


def queue_name(deployment: str, told: str = "") -> str:
    """What a deployment's work queue is called: as told, else by the deployment alone.

    Raises ValueError where that is no name, or another deployment's.
    """
    name = told or f"work-{deployment}"
    if not deployment or deployment_of_queue(name) != deployment:
        raise ValueError(f"{name!r} is not the name of a work queue of {deployment!r}")
    return name


def deployment_of_queue(name: str) -> str:
    """Whose work a queue hands out; "" where that is no work queue's name."""
    found = _QUEUE_NAME.fullmatch(name)
    return found[1] if found else ""


def is_sealed(queue: str) -> bool:
    """Whether a work queue's name cannot be guessed."""
    return _SEAL in queue


def work_consumer(region: str, deployment: str, queue: str = "") -> ConsumerSpec:
    """The queue that all agents holding `deployment` in `region` pull from.

    `queue` is its name as nodes are told it; without one it is called by the deployment alone.

    Agents acknowledge when they take work, so redelivery only covers an agent
    that dies between the two; see docs/decisions/0005. A site that goes dark leaves
    pulls behind that the hub goes on serving, each once, until it misses the site:
    what they get has to come out again until somebody takes it, and soon: a stream waits.
    """
    return ConsumerSpec(
        stream=work_stream(region).name,
        durable=queue_name(deployment, queue),
        filter_subject=work_subject(region, deployment),
        ack_wait=timedelta(seconds=1),
        max_deliver=60,
        max_ack_pending=10_000,
    )


BILLING_USAGE = ConsumerSpec(
    stream=USAGE.name,
    durable="billing-usage",
    filter_subject="busbar.usage.*.*",
    # Posting twice is harmless, so what a killed billing had in hand need not wait long.
    ack_wait=timedelta(seconds=8),
    # With a database that fails billing tries one message every 10 s: more than a week of that.
    max_deliver=100_000,
    max_ack_pending=1_000,
)
TELEMETRY_EVENTS = ConsumerSpec(
    stream=EVENTS.name,
    durable="telemetry-events",
    filter_subject="busbar.evt.*.v1.*",
    ack_wait=timedelta(seconds=30),
    max_deliver=5,
    max_ack_pending=1_000,
)


def billing_measured_consumer(region: str, site: str) -> ConsumerSpec:
    """How billing reads one site's cost records."""
    return ConsumerSpec(
        stream=measured_stream(region, site).name,
        durable="billing-measured",
        filter_subject=f"busbar.measured.{region}.{site}.*",
        ack_wait=timedelta(seconds=8),
        max_deliver=100_000,
        max_ack_pending=1_000,
    )


SERVICE_CONSUMERS = (BILLING_USAGE, TELEMETRY_EVENTS)


# --- subjects ------------------------------------------------------------------------------------


def work_subject(region: str, deployment: str) -> str:
    """Where a gateway publishes InferenceWork."""
    return f"busbar.work.{region}.{deployment}"


def reply_subject(gateway_id: str) -> str:
    """Core NATS: a gateway's one inbox for WorkFrames."""
    return f"busbar.reply.{checked_name(gateway_id)}"


REPLIES = "busbar.reply.*"
"""The inboxes of all gateways."""


def cancel_subject(node_key: str) -> str:
    """Core NATS: where a node agent takes WorkCancel; `node_key` is "region.site.node"."""
    return f"busbar.cancel.{node_key}"


CREDIT_LEASES = "busbar.rpc.billing.v1.credit_leases"
"""Core NATS request and reply: a gateway sends LeaseCall, one billing answers LeaseReply."""

CREDIT_RECALLS = "busbar.recall.credit"
"""Core NATS: billing asks all gateways for the credit that they do not use: CreditRecall."""


def usage_subject(region: str, gateway_id: str) -> str:
    """Where a gateway commits UsageRecorded."""
    return f"busbar.usage.{region}.{gateway_id}"


def measured_subject(node: NodeId) -> str:
    """Where a node agent publishes WorkMeasuredBatch."""
    return f"busbar.measured.{node.key}"


def event_subject(service: str, fact: str) -> str:
    """Where `service` publishes a fact, such as ("node", "triton_lost")."""
    return f"busbar.evt.{checked_name(service)}.v1.{checked_name(fact)}"


def dead_letter_subject(service: str, consumer: str) -> str:
    """Where a message goes that `service` can never handle."""
    return f"busbar.dlq.{checked_name(service)}.{checked_name(consumer)}"


DEAD_WORK = dead_letter_subject("node", "work")
"""Requests with which a Triton died twice."""
NODE_EVENTS = "busbar.evt.node.>"
"""Facts that node agents publish."""
NODE_DEAD_LETTERS = "busbar.dlq.node.>"
"""Work that node agents gave up."""


def site_inbox(region: str, site: str) -> str:
    """What the subjects begin with on which a site takes answers."""
    return f"_INBOX.site.{checked_name(region)}.{checked_name(site)}"


def node_inbox(node: NodeId) -> str:
    """What the subjects begin with on which a node behind a leaf node takes answers."""
    return f"{site_inbox(node.region, node.site)}.{node.node}"


def provisioner_inbox(region: str, site: str) -> str:
    """Where a site answers the provisioner; apart for each, so that none answers for another."""
    return f"_INBOX.provisioner.{checked_name(region)}.{checked_name(site)}"


def sourced_subject(region: str, site: str) -> str:
    """What the subjects begin with on which a site's cost records travel to the hub."""
    return f"busbar.sourced.{checked_name(region)}.{checked_name(site)}"


def is_replayable(subject: str) -> bool:
    """Whether a dead letter from `subject` may be sent back there: records of money and cost."""
    return subject.startswith(("busbar.usage.", "busbar.measured."))


def is_event(subject: str) -> bool:
    """Whether facts are told on this subject."""
    return subject.startswith("busbar.evt.")


def streams(regions: list[str], sites: list[tuple[str, str]]) -> list[StreamSpec]:
    """Every stream of a fleet with these regions and (region, site) pairs."""
    return [
        *[work_stream(region) for region in regions],
        *[measured_stream(region, site) for region, site in sites],
        USAGE,
        EVENTS,
        DLQ,
    ]


def consumers(sites: list[tuple[str, str]]) -> list[ConsumerSpec]:
    """Every consumer the provisioner makes; those of deployments are the scheduler's."""
    return [*SERVICE_CONSUMERS, *[billing_measured_consumer(*site) for site in sites]]
