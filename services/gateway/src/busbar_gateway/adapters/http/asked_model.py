"""Which model a request asks for, told before anything else of it is read."""

from __future__ import annotations

import orjson

from busbar_gateway.adapters.http.exchange import Exchange
from busbar_gateway.adapters.http.limits import decompress

_KSERVE_PREFIX = "/v2/models/"


def asked_model(exchange: Exchange, body: bytes) -> str | None:
    """The model's name; None where the request names none, and so cannot have been answered.

    Raises what `Exchange.body` raises.
    """
    path = exchange.cycle.path
    if path.startswith(_KSERVE_PREFIX):
        return path.removeprefix(_KSERVE_PREFIX).partition("/")[0]
    encoding = exchange.text_header(b"content-encoding")
    text = decompress(body, encoding, exchange.limits.max_body_bytes) if encoding else body
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    name = document.get("model") if isinstance(document, dict) else None
    return name if isinstance(name, str) else None
