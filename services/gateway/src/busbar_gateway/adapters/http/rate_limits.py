"""What is left of a tenant's limits, in OpenAI's headers; KServe v2 has none of its own.

Source: https://platform.openai.com/docs/guides/rate-limits (rate limits in headers).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from busbar_gateway.adapters.http.errors import Headers
from busbar_gateway.domain.limits import Standing

RATE_LIMIT_PREFIX = b"x-ratelimit-"
_MS_PER_S, _S_PER_MINUTE, _S_PER_HOUR = 1000, 60, 3600


def duration(seconds: float) -> str:
    """Return a time as OpenAI writes it: 12ms, 1.5s, 1m2s, 1h0m0s; rounded up, never less."""
    ms = math.ceil(seconds * _MS_PER_S)
    if ms < _MS_PER_S:
        return f"{ms}ms"
    whole_s, ms = divmod(ms, _MS_PER_S)
    if whole_s < _S_PER_MINUTE:
        return f"{whole_s + ms / _MS_PER_S:g}s"
    whole_s += bool(ms)
    minutes, rest_s = divmod(whole_s, _S_PER_MINUTE)
    if whole_s < _S_PER_HOUR:
        return f"{minutes}m{rest_s}s"
    hours, minutes = divmod(minutes, _S_PER_MINUTE)
    return f"{hours}h{minutes}m{rest_s}s"


def rate_limit_headers(standings: Iterable[Standing]) -> Headers:
    """Return limit, remaining and reset of each of them."""
    headers: Headers = []
    for standing in standings:
        kind = standing.kind.encode()
        headers += [
            (RATE_LIMIT_PREFIX + b"limit-" + kind, b"%d" % standing.limit),
            (RATE_LIMIT_PREFIX + b"remaining-" + kind, b"%d" % standing.remaining),
            (RATE_LIMIT_PREFIX + b"reset-" + kind, duration(standing.reset_s).encode()),
        ]
    return headers
