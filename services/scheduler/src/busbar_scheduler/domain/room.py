"""What is left on each node while a plan is being made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from busbar_scheduler.domain.fleet import Assignment, Deployment, Node


def assignment_of(deployment: Deployment) -> Assignment:
    """What a node is told that must hold a replica of it."""
    manifest = deployment.manifest
    return Assignment(
        deployment=deployment.name,
        digest=deployment.digest,
        slots=manifest.slots,
        input_tokens_output=manifest.input_tokens_output,
        output_tokens_output=manifest.output_tokens_output,
    )


class Room:
    """Memory and slots left per node, and what has been put where."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._free_memory_mib = {node.key: node.memory_mib for node in nodes}
        self._free_slots = {node.key: node.slots for node in nodes}
        self._held: dict[str, dict[str, Assignment]] = {node.key: {} for node in nodes}
        self._per_site = Counter[tuple[str, str, str]]()
        self._per_region = Counter[tuple[str, str]]()

    def shortage(self, node: Node, deployment: Deployment) -> str:
        """Why a replica does not fit on the node now; empty when it does."""
        if deployment.name in self._held[node.key]:
            return "already holds a replica"
        need = deployment.manifest
        if need.memory_mib > self._free_memory_mib[node.key]:
            return f"{self._free_memory_mib[node.key]} of {need.memory_mib} MiB free"
        if need.slots > self._free_slots[node.key]:
            return f"{self._free_slots[node.key]} of {need.slots} slots free"
        return ""

    def take(self, node: Node, deployment: Deployment) -> None:
        """Put a replica on a node; the caller has asked `shortage` first."""
        self._held[node.key][deployment.name] = assignment_of(deployment)
        self._free_memory_mib[node.key] -= deployment.manifest.memory_mib
        self._free_slots[node.key] -= deployment.manifest.slots
        self._per_site[deployment.name, node.region, node.site] += 1
        self._per_region[deployment.name, node.region] += 1

    def preference(self, node: Node, deployment: Deployment) -> tuple[int, int, float, str]:
        """Smaller is better: spread over regions, over sites, then the emptiest node."""
        free = self._free_memory_mib[node.key]
        return (
            self._per_region[deployment.name, node.region],
            self._per_site[deployment.name, node.region, node.site],
            1 - free / node.memory_mib if node.memory_mib else 1.0,
            node.key,
        )

    def held(self, node_key: str) -> tuple[Assignment, ...]:
        """What has been put on a node, ordered by deployment."""
        return tuple(one for _, one in sorted(self._held[node_key].items()))
