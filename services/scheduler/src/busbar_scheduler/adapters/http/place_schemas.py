"""Bodies of sites and nodes."""

from __future__ import annotations

import time
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from busbar_scheduler.adapters.fleet_table import Claim, Handled
from busbar_scheduler.domain.accounts import room_on
from busbar_scheduler.domain.decisions import Verdict
from busbar_scheduler.domain.fleet import Avoided, Node, Order, ReplicaState
from busbar_scheduler.domain.orders import Described, Told
from busbar_scheduler.domain.planning import Plan

GRACE_S_MAX = 3_600
Reason = Annotated[str, StringConstraints(max_length=500)]


def _shareable(feeder: str) -> str:
    # Sites so described, each without a feeder that it shares, would share that one.
    if feeder == "none":
        raise ValueError("none is no feeder's name: one that no other site shares is empty")
    return feeder


FeederName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9_./-]{0,100}$"), AfterValidator(_shareable)
]


class SiteBody(BaseModel):
    """What a site is like."""

    model_config = ConfigDict(extra="forbid")

    power_cap_w: Annotated[int, Field(ge=1, le=10**9, strict=True)] | None = Field(
        default=None,
        description="most that its replicas may draw together; null: no limit. "
        "To place nothing there, cordon or drain it",
    )
    energy_nanos_per_kwh: Annotated[int, Field(ge=0, le=10**12, strict=True)] = 0
    feeder: FeederName = Field(
        default="", description="sites may share one, which is not called none; empty: its own"
    )


class CordonBody(BaseModel):
    """Why."""

    model_config = ConfigDict(extra="forbid")

    reason: Reason = ""


class DrainBody(CordonBody):
    """How long it may take, and why."""

    grace_s: Annotated[float, Field(ge=1, le=GRACE_S_MAX, allow_inf_nan=False)] = Field(
        default=120.0,
        description="half of it is for replacements to load, half, two minutes at most, to finish "
        "what is in hand; unloading comes on top",
    )


class OrderView(BaseModel):
    """What a site or a node was told."""

    order: str = Field(description="serve, cordon, drain or quarantine")
    given_unix_ms: int
    grace_ms: int
    reason: str

    @classmethod
    def of(cls, told: Told | None) -> OrderView:
        """As the API shows it."""
        if told is None:
            return cls(order="serve", given_unix_ms=0, grace_ms=0, reason="")
        return cls(
            order=str(told.order),
            given_unix_ms=told.given_unix_ms,
            grace_ms=told.grace_ms,
            reason=told.reason,
        )


class SiteView(BaseModel):
    """A site as the plan sees it."""

    site: str = Field(description="region.site")
    nodes: int
    power_cap_w: int | None = Field(description="null: no limit")
    drawn_w: int = Field(description="what its replicas draw when all of them are busy")
    energy_nanos_per_kwh: int
    feeder: str
    order: OrderView

    @classmethod
    def of(cls, described: Described, *, nodes: int, drawn_w: int) -> SiteView:
        """As the API shows it."""
        site = described.site
        return cls(
            site=site.key,
            nodes=nodes,
            power_cap_w=site.power_cap_w or None,
            drawn_w=drawn_w,
            energy_nanos_per_kwh=site.energy_nanos_per_kwh,
            feeder=site.feeder,
            order=OrderView.of(described.told),
        )


class SiteList(BaseModel):
    """Every site, by name."""

    items: list[SiteView]


class HeldView(BaseModel):
    """A replica that a node holds, or that the plan wants there."""

    deployment: str
    state: str = Field(
        description="as the node reports it; empty when it reports none, unknown while it is silent"
    )
    verdict: str = Field(description="kept, placed, leaving or removed; empty: left over")
    elsewhere: list[str] = Field(description="other nodes where the plan has it")


class AvoidedView(BaseModel):
    """A bundle that is kept off a node for a while, since it failed there."""

    node: str
    deployment: str = Field(description="as which it failed")
    bundle: str
    reason: str
    for_s: int = Field(description="seconds until it may be tried there again")

    @classmethod
    def of(cls, node: str, avoided: Avoided) -> AvoidedView:
        """As the API shows it."""
        return cls(
            node=node,
            deployment=avoided.deployment,
            bundle=avoided.digest,
            reason=avoided.reason,
            for_s=max(0, round(avoided.until_s - time.monotonic())),
        )


class ClaimView(BaseModel):
    """Another agent that was given a node's name, too; it waits and takes no work."""

    run_id: str
    host: str = Field(description="the machine that it runs on")
    holder_run_id: str = Field(description="the run that holds the name")

    @classmethod
    def of(cls, claim: Claim | None) -> ClaimView | None:
        """As the API shows it."""
        return claim and cls(
            run_id=claim.run_id, host=claim.host, holder_run_id=claim.holder_run_id
        )


class NodeDetail(BaseModel):
    """A node as the plan sees it."""

    node: str = Field(description="region.site.node")
    health: str
    order: OrderView = Field(description="what it, or else its whole site, was told")
    memory_mib: int
    memory_free_mib: int
    slots: int
    slots_free: int
    in_flight: int = Field(description="requests in hand, as it last said")
    finished_count: int = Field(description="requests answered since its agent started")
    handed_back_count: int = Field(description="given back unfinished, for others to answer")
    refusal: str = Field(
        description="why it takes no work although its Triton is ready; empty when it does"
    )
    empty: bool = Field(description="whether it reports nothing and nothing is placed there")
    replicas: list[HeldView]
    avoids: list[AvoidedView] = Field(description="bundles that are kept off it, since they failed")
    claim: ClaimView | None = Field(description="who else wants this name; null: nobody")

    @classmethod
    def of(
        cls, node: Node, told: Told | None, handled: Handled, claim: Claim | None, plan: Plan
    ) -> NodeDetail:
        """As the API shows it."""
        room = room_on(plan.packing, node.key)
        known = node.health.known
        states = {
            one.deployment: str(one.state if known else ReplicaState.UNKNOWN)
            for one in node.replicas
        }
        verdicts = {
            one.deployment: str(one.verdict)
            for one in plan.decisions
            if one.node == node.key and one.verdict is not Verdict.UNPLACED
        }
        names = sorted({*states, *verdicts})
        return cls(
            node=node.key,
            health="returning" if node.returning else str(node.health),
            order=_order_now(node, told),
            memory_mib=node.memory_mib,
            memory_free_mib=room.memory_mib,
            slots=node.slots,
            slots_free=room.slots,
            in_flight=handled.in_flight,
            finished_count=handled.finished,
            handed_back_count=handled.handed_back,
            refusal=handled.refusal,
            empty=not states and not plan.packing.on(node.key),
            replicas=[
                HeldView(
                    deployment=name,
                    state=states.get(name, ""),
                    verdict=verdicts.get(name, ""),
                    elsewhere=[key for key in plan.nodes_of(name) if key != node.key],
                )
                for name in names
            ],
            avoids=[AvoidedView.of(node.key, one) for one in node.avoids],
            claim=ClaimView.of(claim),
        )


def _order_now(node: Node, told: Told | None) -> OrderView:
    """What the node was told; a quarantine that is over is only remembered."""
    view = OrderView.of(told)
    if told and told.order is Order.QUARANTINE and node.order is Order.SERVE:
        return view.model_copy(update={"order": "serve", "reason": f"was out: {told.reason}"})
    return view


class NodeDetailList(BaseModel):
    """Every node, by name."""

    items: list[NodeDetail]
