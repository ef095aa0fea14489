"""The body that says why a deployment is where it is."""

from __future__ import annotations

from pydantic import BaseModel, Field

from busbar_scheduler.adapters.http.place_schemas import AvoidedView
from busbar_scheduler.adapters.http.rollout_schemas import RolledBackView
from busbar_scheduler.domain.accounts import Account
from busbar_scheduler.domain.fleet import Deployment


class PlaceView(BaseModel):
    """One replica that is held or was."""

    node: str
    verdict: str = Field(description="kept, placed, leaving or removed")
    reason: str
    energy_nanos_per_h: int = Field(description="what its power costs there, an hour")
    loading_s: int = Field(description="until it would serve; 0 when it was there before")
    cheaper_places: int = Field(description="nodes it may run on where power costs less")
    cheaper_with_room: int = Field(
        description="those of them with room now; moving there would cost more than it saves"
    )


class HindranceView(BaseModel):
    """What keeps one more replica off how many nodes."""

    obstacle: str
    nodes: int
    example: str = Field(description="one of the nodes")


class ExplanationView(BaseModel):
    """Why a deployment is where it is, and why it is not where it is not."""

    name: str
    promised: int
    wanted: int = Field(description="with what demand asks for beyond the promise")
    scaling: str = Field(description="why so many are wanted; empty where demand does not decide")
    rollout: str = Field(description="what a version on trial waits for; empty without one")
    placed: int
    short: int = Field(
        description="promised replicas without a place, or that the loss of a site would take"
    )
    survivors: int = Field(description="replicas left when the site that holds most is lost")
    revenue_nanos_per_h: int
    places: list[PlaceView]
    unplaced: list[str] = Field(description="why there are not more, once for each reason")
    hindrances: list[HindranceView]
    open_nodes: int = Field(description="nodes that could take one more now")
    never: str = Field(description="why an empty fleet could not hold it; empty when it could")
    kept_off: list[AvoidedView] = Field(description="nodes on which its bundle failed lately")
    rolled_back: RolledBackView | None = Field(
        description="the version that was tried last and given up"
    )

    @classmethod
    def of(
        cls,
        deployment: Deployment,
        account: Account,
        scaling: str,
        rollout: str,
    ) -> ExplanationView:
        """As the API shows it."""
        return cls(
            name=deployment.name,
            promised=account.promised,
            wanted=account.wanted,
            scaling=scaling,
            rollout=rollout,
            placed=account.placed,
            short=account.short,
            survivors=account.survivors,
            revenue_nanos_per_h=account.revenue_nanos_per_h,
            places=[
                PlaceView(
                    node=one.decision.node,
                    verdict=str(one.decision.verdict),
                    reason=one.decision.reason,
                    energy_nanos_per_h=one.energy_nanos_per_h,
                    loading_s=one.loading_s,
                    cheaper_places=one.cheaper_places,
                    cheaper_with_room=one.cheaper_with_room,
                )
                for one in account.places
            ],
            unplaced=list(dict.fromkeys(one.reason for one in account.unplaced)),
            hindrances=[
                HindranceView(obstacle=str(one.obstacle), nodes=one.nodes, example=one.example)
                for one in account.hindrances
            ],
            open_nodes=account.open_nodes,
            never=account.never,
            kept_off=[AvoidedView.of(node, one) for node, one in account.kept_off],
            rolled_back=RolledBackView.of(deployment.rolled_back),
        )
