"""Whatever ids of another tenant are put into whatever route: they do not exist, and nothing
happens to what they name."""

from __future__ import annotations

import re

import httpx
from account_parts import Account, every_operation
from api_document import Request, Slot
from billing_parts import Json, Service
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

ONE_EXAMPLE_IS_ALL_ROUTES = settings(
    max_examples=3,
    phases=[Phase.generate],  # a failure names its request; there is nothing to shrink
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAMES_SOMETHING = re.compile(r"((?<!^tax)_id|^number|^prefix)$")


def names_nothing(answer: httpx.Response, slot: Slot) -> bool:
    """Whether the answer is that of an id which nobody has."""
    if answer.status_code == 404:
        return bool(answer.json()["error"]["code"] == "not_found")
    # A list filtered by what does not exist is empty; what cannot be an id of this kind is refused.
    empty = answer.status_code == 200 and answer.json()["items"] == []
    return slot.where == "query" and (empty or answer.status_code == 422)


def foreign(operation_slots: list[Slot]) -> list[Slot]:
    return [
        slot
        for slot in operation_slots
        if slot.where == "path" or NAMES_SOMETHING.search(slot.name)
    ]


async def state(billing: Service, whose: Account) -> list[Json]:
    """Everything that somebody could have changed."""
    tenant = f"/tenants/{whose.tenant_id}"
    told = [
        await billing.json("GET", f"{tenant}{path}")
        for path in (
            *("", "/keys", "/projects", "/billing-details", "/terms"),
            *("/balance", "/balance/threshold", "/webhooks"),
        )
    ]
    for key in told[1]["items"]:
        key["last_used_at"] = None
    told[-2]["level"] = ""  # what was seen of it, by and by
    for endpoint in told[-1]["items"]:
        endpoint["failing_since"] = None
    return [*told, await billing.json("GET", "/ledger", params={"tenant_id": whose.tenant_id})]


@ONE_EXAMPLE_IS_ALL_ROUTES
@given(data=st.data())
async def test_no_id_of_anothers_exists_in_any_path_query_or_body(
    billing: Service, mine: Account, theirs: Account, document: Json, data: st.DataObject
) -> None:
    before = await state(billing, theirs)
    tried = 0
    for operation in every_operation(document):
        for slot in foreign(operation.slots):
            request = data.draw(operation.requests(mine.known))
            for theirs_id in theirs.ids:
                answer = await mine.send(request.having(slot, theirs_id))
                tried += 1

                assert names_nothing(answer, slot), (request, slot.name, theirs_id, answer.text)
                assert not [one for one in theirs.ids if one != theirs_id and one in answer.text]

    assert tried > 100
    assert await state(billing, theirs) == before


async def test_no_body_names_a_tenant(mine: Account, theirs: Account, document: Json) -> None:
    for operation in every_operation(document):
        if operation.body is not None:
            body = {"tenant_id": theirs.tenant_id, "name": "n"}
            request = Request(operation.method, operation.template, mine.known, {}, body)
            answer = await mine.send(request)

            assert answer.status_code == 422, (operation, answer.text)


async def test_an_operator_cannot_mix_tenants_up(
    billing: Service, mine: Account, theirs: Account
) -> None:
    keys = f"/tenants/{mine.tenant_id}/keys"
    made = await billing.call("POST", keys, json={"name": "n", "project_id": theirs.project_id})
    listed = await billing.call("GET", keys, params={"project_id": theirs.project_id})

    assert (made.status_code, listed.status_code) == (404, 404)
