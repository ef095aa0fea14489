"""Requests made up from an OpenAPI document, so that tests reach routes nobody told them of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import quote

from billing_parts import Json
from hypothesis import strategies as st

Where = Literal["path", "query", "json"]
INTEGERS_MAX = 2**31


@dataclass(frozen=True)
class Slot:
    """Something that a request can carry."""

    where: Where
    name: str
    schema: Json


@dataclass(frozen=True)
class Request:
    """One request of an operation."""

    method: str
    template: str
    path: Mapping[str, str]
    query: Mapping[str, Any]
    json: Any = None

    @property
    def url(self) -> str:
        """Its path, with everything in it."""
        return self.template.format(
            **{name: quote(one, safe="") for name, one in self.path.items()}
        )

    def having(self, slot: Slot, value: Any) -> Request:
        """The same with one value in its place."""
        held: Any = getattr(self, slot.where)
        return replace(self, **{slot.where: {**(held or {}), slot.name: value}})


@dataclass(frozen=True)
class Operation:
    """A method of a path."""

    method: str
    template: str
    slots: list[Slot]
    body: Json | None
    required: frozenset[str]
    schemas: Mapping[str, Json] = field(repr=False)

    def strings(self) -> list[Slot]:
        """What holds text, and is not one of a few words."""
        return [slot for slot in self.slots if self._is_text(slot.schema)]

    def requests(self, known: Mapping[str, Any]) -> st.SearchStrategy[Request]:
        """Requests that the document allows, with what is known of the world in its place."""
        parts: dict[str, st.SearchStrategy[Any]] = {}
        for where in ("path", "query"):
            wanted = {slot.name: slot.schema for slot in self.slots if slot.where == where}
            parts[where] = st.fixed_dictionaries(
                {
                    name: st.just(known[name]) if name in known else self._values(schema)
                    for name, schema in wanted.items()
                    if where == "path" or name in self.required
                }
            )
        body = st.none() if self.body is None else self._values(self.body, known)
        return st.builds(Request, st.just(self.method), st.just(self.template), json=body, **parts)

    def _is_text(self, schema: Json) -> bool:
        plain = self.plain(schema)
        return plain.get("type") == "string" and "enum" not in plain and "const" not in plain

    def plain(self, schema: Json) -> Json:
        """Without references and without null beside it."""
        if "$ref" in schema:
            return self.plain(self.schemas[schema["$ref"].rsplit("/", 1)[1]])
        if "anyOf" in schema:
            return self.plain(next(one for one in schema["anyOf"] if one.get("type") != "null"))
        return schema

    def _values(self, schema: Json, known: Mapping[str, Any] | None = None) -> Any:
        plain = self.plain(schema)
        if "enum" in plain or "const" in plain:
            return st.sampled_from(plain.get("enum") or [plain["const"]])
        match plain.get("type"):
            case "object":
                return self._objects(plain, known or {})
            case "array":
                shortest = plain.get("minItems", 0)
                return st.lists(self._values(plain["items"]), min_size=shortest, max_size=shortest)
            case "integer":
                least = plain.get("minimum", plain.get("exclusiveMinimum", -1) + 1)
                return st.integers(least, min(plain.get("maximum", INTEGERS_MAX), INTEGERS_MAX))
            case "boolean":
                return st.booleans()
            case _:
                return _texts(plain)

    def _objects(self, plain: Json, known: Mapping[str, Any]) -> Any:
        if "properties" not in plain:
            named = plain.get("propertyNames", {})
            told = plain.get("patternProperties", {"": plain.get("additionalProperties", {})})
            [held] = told.values()
            words = "$ref" in named or "enum" in named
            keys = self._values(named) if words else st.just("default")
            return st.dictionaries(keys, self._values(held), min_size=1, max_size=1)
        given = {name: st.just(known[name]) for name in plain["properties"] if name in known}
        wanted = {
            name: self._values(plain["properties"][name]) for name in plain.get("required", [])
        }
        return st.fixed_dictionaries({**wanted, **given})


def _texts(plain: Json) -> st.SearchStrategy[str]:
    if plain.get("format") == "date-time":
        return st.sampled_from(["2089-01-01T00:00:00Z", "2089-06-01T00:00:00+02:00"])
    if "pattern" in plain:
        return st.from_regex(plain["pattern"].replace("$", r"\Z"))
    shortest, longest = plain.get("minLength", 1), plain.get("maxLength", 20)
    return st.text("abcdef-0123456789", min_size=shortest, max_size=min(longest, shortest + 20))


def operations(document: Json, prefix: str) -> Iterator[Operation]:
    """Every operation; their paths are told without `prefix`."""
    schemas = document.get("components", {}).get("schemas", {})
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            yield _operation(method, path.removeprefix(prefix), told, schemas)


def _operation(method: str, path: str, told: Json, schemas: Mapping[str, Json]) -> Operation:
    given = told.get("parameters", [])
    slots = [Slot(one["in"], one["name"], one["schema"]) for one in given]
    required = frozenset(one["name"] for one in given if one.get("required"))
    content = told.get("requestBody", {}).get("content", {})
    body = content["application/json"]["schema"] if content else None
    made = Operation(method.upper(), path, slots, body, required, schemas)
    if body is None:
        return made
    fields = made.plain(body)["properties"]
    return replace(made, slots=[*slots, *(Slot("json", name, one) for name, one in fields.items())])
