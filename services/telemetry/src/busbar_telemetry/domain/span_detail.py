"""What only the page of one trace shows of a span."""

from __future__ import annotations

from dataclasses import dataclass

AttributeValue = str | int | float | bool
Attributes = tuple[tuple[str, AttributeValue], ...]


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """Something that happened during a span."""

    at_ns: int
    name: str
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class SpanDetail:
    """`kind` is lower case, such as "server"; `links` are (trace id, span id)."""

    kind: str
    status_message: str
    attributes: Attributes
    events: tuple[SpanEvent, ...]
    links: tuple[tuple[str, str], ...]
