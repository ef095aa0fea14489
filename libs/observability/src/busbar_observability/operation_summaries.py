"""OpenAPI documents that name each operation by what its docstring says of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Document = dict[str, Any]
_METHODS = ("get", "put", "post", "delete", "patch")


def summarised(openapi: Callable[[], Document]) -> Callable[[], Document]:
    """FastAPI's `app.openapi` with each description's first sentence as its summary."""

    def document() -> Document:
        made = openapi()
        for operations in made.get("paths", {}).values():
            for method in _METHODS:
                _summarise(operations.get(method, {}))
        return made

    return document


def _summarise(operation: Document) -> None:
    """Once: what has no description has its summary already."""
    description: str = operation.pop("description", "")
    first, _, rest = description.partition("\n\n")
    if not first:
        return
    operation["summary"] = " ".join(first.split()).removesuffix(".")
    if rest:
        operation["description"] = description
