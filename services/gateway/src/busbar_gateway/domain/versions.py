"""Two versions of one deployment: which of them takes a request, and what came of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from zlib import crc32

from busbar_gateway.domain.routes import Canary, Route

_PERCENT = 100
_MODEL_NAME_FIELD = b"\x0a"
"""Key of `model_name`: field 1 of inference.ModelInferRequest and of ModelInferResponse."""


def is_drawn(request_id: bytes, percent: int) -> bool:
    """Whether a request belongs to the share that the canary takes; the same each time."""
    return crc32(request_id) % _PERCENT < percent


def version_for(
    route: Route, request_id: bytes, *, staying_with: str | None, shunned: bool = False
) -> Canary | None:
    """Return the canary if it takes the request, None if the version that serves does.

    `staying_with` is the track that had the attempt before, empty for the version that serves
    and None for the first attempt: a request stays with its version while that takes work.
    `shunned` says that the canary has failed it: then only where nothing else serves.
    """
    canary = route.canary
    if canary is None or not canary.takes_work:
        return None
    if not route.stable_slots:
        return canary
    if shunned:
        return None
    if staying_with is not None:
        return canary if staying_with == canary.track else None
    return canary if is_drawn(request_id, canary.percent) else None


def named(message: bytes, model_name: str) -> bytes:
    """A serialized request or response under another `model_name`.

    Of a field that is there twice the last one counts:
    https://protobuf.dev/programming-guides/encoding/#last-one-wins
    """
    name = model_name.encode()
    return message + _MODEL_NAME_FIELD + bytes((len(name),)) + name


@dataclass(slots=True)
class Outcomes:
    """How the attempts of one version ended."""

    answered: int = 0
    failed: int = 0
    timed: int = 0
    log_latency_sum: float = 0.0
    log_latency_square_sum: float = 0.0

    def answer(self, compute_us: int, output_tokens: int) -> None:
        """Count an answer; a longer one may take longer."""
        self.answered += 1
        if compute_us > 0:
            latency = math.log(compute_us / max(1, output_tokens))
            self.timed += 1
            self.log_latency_sum += latency
            self.log_latency_square_sum += latency * latency


@dataclass(slots=True)
class Trial:
    """One request's way between the versions."""

    canary: Canary | None = None
    """Has the present attempt; None where the version that serves has it."""
    digest: str = ""
    """Of the version that has the present attempt."""
    shuns: bool = False
    """The canary has failed it."""
    doubted: str = ""
    """Digest of the canary that refused the input; the other version tells if that was right."""
