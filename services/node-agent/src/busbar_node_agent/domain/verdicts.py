"""Whose fault a failure of Triton is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

REASON_CHARS_MAX = 2_000


class FailureKind(Enum):
    """As busbar.node.v1.FailureKind; the names are the same."""

    REJECTED = "REJECTED"
    NOT_FOUND = "NOT_FOUND"
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    TOO_LARGE = "TOO_LARGE"
    CANCELLED = "CANCELLED"
    ENGINE_LOST = "ENGINE_LOST"


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt failed."""

    kind: FailureKind
    reason: str
    told_to_leave: bool = False
    """Whether only an order to leave is to blame."""


_KINDS = {
    "INVALID_ARGUMENT": FailureKind.REJECTED,
    "FAILED_PRECONDITION": FailureKind.REJECTED,
    "OUT_OF_RANGE": FailureKind.REJECTED,
    "UNIMPLEMENTED": FailureKind.REJECTED,
    "NOT_FOUND": FailureKind.NOT_FOUND,
    "UNAVAILABLE": FailureKind.UNAVAILABLE,
    "ABORTED": FailureKind.UNAVAILABLE,
    "CANCELLED": FailureKind.UNAVAILABLE,  # by Triton, that is: what we cancel is not judged here
    "DEADLINE_EXCEEDED": FailureKind.DEADLINE_EXCEEDED,
}
_MODEL_PROCESS_DIED = re.compile("Stub process .* is not healthy")
_BLAMED_ON_RELOADING = {FailureKind.NOT_FOUND, FailureKind.INTERNAL}

# Triton 2.51 refuses what it does not even queue with a text only, when it comes by a stream.
_REFUSALS = (
    ("Request for unknown model", "NOT_FOUND"),
    ("has no available versions", "UNAVAILABLE"),
    ("is not ready", "UNAVAILABLE"),
    ("maximum queue size", "UNAVAILABLE"),
    ("Server is stopping", "UNAVAILABLE"),
    ("Server exiting", "UNAVAILABLE"),
)


def refusal_code(message: str) -> str:
    """The status code that a stream's refusal would have had as a call of its own."""
    for phrase, code in reversed(_REFUSALS):
        if phrase in message:
            return code
    return "INVALID_ARGUMENT"


def may_be_a_crash(code: str, message: str) -> bool:
    """Whether a call was cut off, rather than refused by a Triton that lives."""
    return code == "UNAVAILABLE" and not any(phrase in message for phrase, _ in _REFUSALS)


def is_too_large(code: str, message: str) -> bool:
    """Whether an answer was larger than what is taken."""
    return code == "RESOURCE_EXHAUSTED" and "larger than max" in message


def would_be_each_ones(code: str, message: str) -> bool:
    """Whether each of several callers that were refused as one would be refused alone, too.

    Triton turned them away before the model saw them, or they are out of time. Anything else may
    be the fault of one, and a model may blame it on whatever status it likes.
    """
    turned_away = code == "UNAVAILABLE" and not may_be_a_crash(code, message)
    return turned_away or code == "DEADLINE_EXCEEDED"


def judge(code: str, message: str, *, loaded: bool) -> Failure:
    """Decide from a gRPC status code's name and message.

    `loaded` says whether this replica is still loaded as far as we know: a model
    that a restart has just taken away is "unknown" to Triton too, but then
    another attempt may help. A model's own exceptions come as INTERNAL, its
    refusals as INVALID_ARGUMENT.
    """
    reason = message[:REASON_CHARS_MAX] or code.lower().replace("_", " ")
    if code == "RESOURCE_EXHAUSTED":
        too_large = is_too_large(code, message)
        return Failure(FailureKind.TOO_LARGE if too_large else FailureKind.UNAVAILABLE, reason)
    kind = _KINDS.get(code, FailureKind.INTERNAL)
    gone = not loaded or _MODEL_PROCESS_DIED.search(message) is not None
    if kind in _BLAMED_ON_RELOADING and gone:
        return Failure(FailureKind.UNAVAILABLE, reason)
    return Failure(kind, reason)


def load_failure(refusal: str, complaint: str) -> str:
    """Why a model does not load, once: by the refusal of Triton, which ends what it says of each
    version with ";", and by its log ("" for nothing), which may repeat that in its own frame."""
    reason = refusal.rstrip().removesuffix(";").rstrip()
    _, _, said = complaint.strip().partition(": ")
    if not complaint or complaint.strip() in reason or (said and said in reason):
        return reason
    return f"{reason}; Triton says: {complaint.strip()}"
