"""What a site may do at its region's hub, and a node at its site's leaf node; the rest is refused.

Both are lists of subjects as they cross the leaf node: what the hub's JetStream is asked carries
the hub's domain, for the servers keep the plain names on either side.
"""

from __future__ import annotations

from busbar_messaging import topology
from busbar_messaging.server_config import Permissions
from busbar_messaging.topology import HUB_DOMAIN, NodeId, api_prefix

_FLOW_CONTROL = "$JS.FC.>"
_API = api_prefix(HUB_DOMAIN)
_ANY = "*"


def site_permissions(region: str, site: str) -> Permissions:
    """Of a site's leaf node at its hub: whatever its nodes may, and its cost records."""
    domain = topology.site_domain(region, site)
    nodes = f"{region}.{site}.{_ANY}"
    return Permissions(
        publish=(
            *_of_nodes(region, nodes),
            # the cost records that the hub fetches, and the site's part of fetching them
            f"{topology.sourced_subject(region, site)}.>",
            "$JSC.R.>",
            f"{topology.provisioner_inbox(region, site)}.>",
        ),
        subscribe=(
            f"{topology.site_inbox(region, site)}.>",
            topology.cancel_subject(nodes),
            f"{api_prefix(domain)}.>",
            _FLOW_CONTROL,
        ),
    )


def node_permissions(node: NodeId) -> Permissions:
    """Of a node at its site's leaf node."""
    return Permissions(
        publish=(*_of_nodes(node.region, node.key), topology.measured_subject(node)),
        subscribe=(f"{topology.node_inbox(node)}.>", topology.cancel_subject(node.key)),
    )


def _of_nodes(region: str, nodes: str) -> tuple[str, ...]:
    """What nodes may publish at the hub: `nodes` is one node's key, or a pattern of keys."""
    work = topology.work_stream(region).name
    models, placements = f"OBJ_{topology.MODELS.name}", topology.PLACEMENTS.name
    leases = f"{_API}.CONSUMER.CREATE.KV_{topology.LEASES.name}.*.$KV.{topology.LEASES.name}"
    return (
        # answers and facts
        topology.REPLIES,
        topology.NODE_EVENTS,
        topology.NODE_DEAD_LETTERS,
        # signs of life
        topology.entry_subject(topology.LEASES, nodes, HUB_DOMAIN),
        topology.entry_subject(topology.NODES, nodes, HUB_DOMAIN),
        # who holds its name
        f"{leases}.{nodes}",
        f"{leases}.{topology.PULSE}",
        topology.entry_subject(topology.CLAIMS, nodes, HUB_DOMAIN),
        # work of this region, out of the queues whose names it is told with its placements
        f"{_API}.CONSUMER.MSG.NEXT.{work}.*",
        f"{topology.LEAF_ACKS}.{work}.>",
        # what it shall hold
        f"{_API}.CONSUMER.CREATE.KV_{placements}.*.$KV.{placements}.{nodes}",
        # models
        f"{_API}.STREAM.NAMES",
        f"{_API}.STREAM.INFO.{models}",
        f"{_API}.CONSUMER.CREATE.{models}",
        f"{_API}.CONSUMER.CREATE.{models}.>",
        f"{_API}.CONSUMER.DELETE.{models}.*",
        f"{_API}.DIRECT.GET.{models}.>",
        f"{_API}.STREAM.MSG.GET.{models}",
        _FLOW_CONTROL,
    )
