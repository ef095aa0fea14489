"""Routes of what energy costs at each site."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated

from busbar_errors import Rejected
from fastapi import APIRouter
from pydantic import AwareDatetime, BaseModel, Field, StrictInt, StrictStr

from busbar_billing.adapters.http.paging import PAGE_DEFAULT, Limit
from busbar_billing.adapters.http.prices import unix_ns
from busbar_billing.adapters.http.schemas import CurrencyCode, Page, Wanted
from busbar_billing.adapters.http.showing import moment
from busbar_billing.adapters.postgres.energy import EnergyPrices
from busbar_billing.domain.energy import KWH_NANOS_MAX, EnergyPrice, checked_energy_price
from busbar_billing.domain.usage import UNIX_NS_MAX


class WantedEnergyPrice(Wanted):
    """What a kilowatt-hour costs at "region/site" from `effective_from` (default: now); there are
    hours in which it is below zero."""

    site: Annotated[StrictStr, Field(max_length=127)]
    kwh_nanos: Annotated[StrictInt, Field(ge=-KWH_NANOS_MAX, le=KWH_NANOS_MAX)]
    currency: CurrencyCode = "USD"
    effective_from: AwareDatetime | None = None


class EnergyPriceAnswer(BaseModel):
    """What a kilowatt-hour costs at a site, until its next price begins."""

    site: str
    effective_from: datetime
    currency: str
    kwh_nanos: int


def energy_routes(prices: EnergyPrices) -> APIRouter:
    """POST, GET /energy-prices."""
    router = APIRouter(prefix="/admin/v1/energy-prices", tags=["prices"])

    @router.post("", status_code=201)
    async def publish(wanted: WantedEnergyPrice) -> EnergyPriceAnswer:
        """Set what a kilowatt hour costs at a site."""
        now_ns = time.time_ns()
        begins = unix_ns(wanted.effective_from, now_ns)
        if not now_ns <= begins <= UNIX_NS_MAX:
            raise Rejected("effective_from has passed, or is after the year 2100")
        price = EnergyPrice(wanted.site, begins, wanted.currency, wanted.kwh_nanos)
        await prices.add(checked_energy_price(price))
        return show_energy_price(price)

    @router.get("")
    async def list_newest(limit: Limit = PAGE_DEFAULT) -> Page[EnergyPriceAnswer]:
        """List the energy prices, newest first."""
        rows = await prices.newest(limit)
        return Page(items=[show_energy_price(row) for row in rows], next_cursor=None)

    return router


def show_energy_price(price: EnergyPrice) -> EnergyPriceAnswer:
    """What a kilowatt-hour costs at a site."""
    return EnergyPriceAnswer(
        site=price.site,
        effective_from=moment(price.effective_from_unix_ns),
        currency=price.currency,
        kwh_nanos=price.kwh_nanos,
    )
