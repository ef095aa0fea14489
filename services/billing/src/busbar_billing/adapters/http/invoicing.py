"""Routes of who issues statements and to whom, for operators."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field, StrictInt, StrictStr

from busbar_billing.adapters.http.paging import PAGE_DEFAULT, Cursor, Limit, decode_cursor, page
from busbar_billing.adapters.http.schemas import Page, Slug, Wanted
from busbar_billing.adapters.postgres.invoicing import Invoicing
from busbar_billing.domain.invoicing import (
    ADDRESS_LINE_MAX,
    ADDRESS_LINES_MAX,
    DEFAULT_ENTITY,
    TAX_ID_MAX,
    TAX_NAME_MAX,
    TAX_NOTE_MAX,
    BillingDetails,
    LegalEntity,
    checked_details,
    checked_entity,
)
from busbar_billing.domain.names import NAME_MAX
from busbar_billing.domain.statements import PPM, Tax

Name = Annotated[StrictStr, Field(min_length=1, max_length=NAME_MAX)]
AddressLine = Annotated[StrictStr, Field(min_length=1, max_length=ADDRESS_LINE_MAX)]
Address = Annotated[list[AddressLine], Field(max_length=ADDRESS_LINES_MAX)]
TaxId = Annotated[StrictStr, Field(max_length=TAX_ID_MAX)]


class WantedDetails(Wanted):
    """To whom statements are addressed, from the next one on."""

    name: Name
    address: Address = Field(default=[])
    tax_id: TaxId = ""

    def details(self, tenant_id: str, entity_id: str = DEFAULT_ENTITY) -> BillingDetails:
        """As the domain has it; raises Rejected."""
        address = tuple(self.address)
        return checked_details(
            BillingDetails(tenant_id, self.name, address, self.tax_id, entity_id)
        )


class WantedTenantDetails(WantedDetails):
    """And the legal entity that issues them."""

    entity_id: Slug = DEFAULT_ENTITY


class DetailsAnswer(BaseModel):
    """To whom a tenant's statements are addressed, and the legal entity that issues them."""

    tenant_id: str
    entity_id: str
    name: str
    address: list[str]
    tax_id: str


class TaxFields(Wanted):
    """The tax that charges contain, in millionths of the net amount; none when `ppm` is 0."""

    name: Annotated[StrictStr, Field(max_length=TAX_NAME_MAX)] = ""
    ppm: Annotated[StrictInt, Field(ge=0, le=PPM)] = 0
    note: Annotated[StrictStr, Field(max_length=TAX_NOTE_MAX)] = ""


class WantedEntity(Wanted):
    """Who issues statements, from the next one on. `number_prefix` begins every number and never
    changes."""

    name: Name
    number_prefix: Annotated[StrictStr, Field(pattern=r"^[A-Z0-9]{1,10}$")]
    address: Address = Field(default=[])
    tax_id: TaxId = ""
    tax: TaxFields = TaxFields()

    def entity(self, entity_id: str) -> LegalEntity:
        """As the domain has it; raises Rejected."""
        tax = Tax(self.tax.name, self.tax.ppm, self.tax.note)
        address = tuple(self.address)
        return checked_entity(
            LegalEntity(entity_id, self.name, self.number_prefix, address, self.tax_id, tax)
        )


class EntityAnswer(BaseModel):
    """Who issues statements."""

    entity_id: str
    name: str
    number_prefix: str
    address: list[str]
    tax_id: str
    tax: TaxFields


def invoicing_routes(invoicing: Invoicing) -> APIRouter:
    """GET /legal-entities; GET, PUT /legal-entities/{id} and /tenants/{id}/billing-details."""
    router = APIRouter(prefix="/admin/v1", tags=["statements"])

    @router.get("/legal-entities")
    async def list_all(limit: Limit = PAGE_DEFAULT, cursor: Cursor = None) -> Page[EntityAnswer]:
        """List who issues statements."""
        rows = await invoicing.entities(limit + 1, decode_cursor(cursor, ""))
        return page(rows, limit, lambda row: row.entity_id, _show_entity)

    @router.get("/legal-entities/{entity_id}")
    async def entity(entity_id: str) -> EntityAnswer:
        """Read one issuer of statements."""
        return _show_entity(await invoicing.entity(entity_id))

    @router.put("/legal-entities/{entity_id}")
    async def put_entity(entity_id: str, wanted: WantedEntity) -> EntityAnswer:
        """Describe an issuer of statements."""
        return _show_entity(await invoicing.put_entity(wanted.entity(entity_id)))

    @router.get("/tenants/{tenant_id}/billing-details")
    async def details(tenant_id: str) -> DetailsAnswer:
        """Read to whom a tenant's statements go."""
        return show_details(await invoicing.details(tenant_id))

    @router.put("/tenants/{tenant_id}/billing-details")
    async def put_details(tenant_id: str, wanted: WantedTenantDetails) -> DetailsAnswer:
        """Say to whom a tenant's statements go."""
        kept = wanted.details(tenant_id, wanted.entity_id)
        return show_details(await invoicing.put_details(kept, change_entity=True))

    return router


def show_details(details: BillingDetails) -> DetailsAnswer:
    """To whom a tenant's statements are addressed."""
    return DetailsAnswer.model_validate(details, from_attributes=True)


def _show_entity(entity: LegalEntity) -> EntityAnswer:
    tax = TaxFields(name=entity.tax.name, ppm=entity.tax.ppm, note=entity.tax.note)
    return EntityAnswer(
        entity_id=entity.entity_id,
        name=entity.name,
        number_prefix=entity.number_prefix,
        address=list(entity.address),
        tax_id=entity.tax_id,
        tax=tax,
    )
