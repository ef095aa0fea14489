"""Refuses query parameters that a route does not know: they may have meant something."""

from __future__ import annotations

from fastapi.dependencies.utils import get_flat_params
from fastapi.params import ParamTypes
from starlette.exceptions import HTTPException
from starlette.requests import Request


async def refuse_unknown_queries(request: Request) -> None:
    """For every route of a FastAPI application: raise a 422 for what it does not take.

    A misspelt filter would answer with everybody's rows.
    """
    if not request.query_params:
        return
    known = {
        one.alias
        for one in get_flat_params(request.scope["route"].dependant)
        # what a model of queries is made of says nothing of where it stands
        if getattr(one.field_info, "in_", ParamTypes.query) is ParamTypes.query
    }
    unknown = sorted(set(request.query_params) - known)
    if unknown:
        takes = ", ".join(sorted(known)) or "none"
        said = f"there is no query parameter {unknown[0][:80]!r} here; there are: {takes}"
        raise HTTPException(422, said)
