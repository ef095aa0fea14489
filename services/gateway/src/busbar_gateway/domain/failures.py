"""How a request can fail, and what each failure is called at every edge.

Edges raise and catch these; `answer_for` is the only table of statuses.
Whatever is not in it is a bug and is answered without its reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from busbar_errors import BusbarError, NotFound, Rejected, Unavailable

__all__ = [
    "AnswerTooLarge",
    "Answered",
    "DeadlineExceeded",
    "Forbidden",
    "IdempotencyKeyReused",
    "IdempotencyShareSpent",
    "IdempotentAnswerDropped",
    "InsufficientQuota",
    "InvalidInput",
    "ModelFailed",
    "ModelUnready",
    "PayloadTooLarge",
    "RateLimited",
    "Unauthenticated",
    "Unavailable",
    "UnknownDeployment",
    "UnknownVersion",
    "Unsupported",
    "answer_for",
    "reason_for",
]

_UNREADY_RETRY_AFTER_S = 2.0
"""A model takes about so long to come back from a restart of its Triton."""


class Unauthenticated(BusbarError):
    """No API key, or none that we know."""


class Forbidden(BusbarError):
    """The key is right, but nobody may do this here."""


class UnknownDeployment(NotFound):
    """No such model, or none that this key may use: never told apart."""


class UnknownVersion(NotFound):
    """The model has no such version."""


class InvalidInput(Rejected):
    """The request is wrong; `param` names the field to change where there is one."""

    def __init__(self, reason: str, param: str | None = None) -> None:
        super().__init__(reason)
        self.param = param


class Unsupported(Rejected):
    """The model or the platform does not offer this call at all."""


class PayloadTooLarge(Rejected):
    """The request is larger than this model or the platform takes."""


class AnswerTooLarge(Rejected):
    """The model's answer does not fit a message; ask for less."""


class IdempotencyKeyReused(Rejected):
    """The Idempotency-Key belongs to another request."""


class IdempotentAnswerDropped(Rejected):
    """The request was answered before, with more than is kept."""


class ModelUnready(Unavailable):
    """The model is deployed, and nothing that has it is ready."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, _UNREADY_RETRY_AFTER_S)


class RateLimited(Unavailable):
    """Too much is waiting already; come back after `retry_after_s`."""


class IdempotencyShareSpent(RateLimited):
    """The tenant keeps as many answers as it may; what it kept first ends in `retry_after_s`."""


class InsufficientQuota(BusbarError):
    """The tenant's balance or budget does not cover it; trying again changes nothing."""


class DeadlineExceeded(BusbarError):
    """The answer did not come before the request's deadline."""


class ModelFailed(BusbarError):
    """The model failed on a valid input: ours, not the customer's."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What a kind of failure is called over HTTP, in OpenAI's shape and over gRPC."""

    http_status: int
    openai_type: str
    openai_code: str | None
    grpc_code: str
    """Name of a grpc.StatusCode."""


_BAD_REQUEST = "invalid_request_error"
# First match wins, so subclasses stand before the kind they refine.
_ANSWERS: tuple[tuple[type[BaseException], Answered], ...] = (
    (
        Unauthenticated,
        Answered(401, "authentication_error", "invalid_api_key", "UNAUTHENTICATED"),
    ),
    (Forbidden, Answered(403, "permission_error", "forbidden", "PERMISSION_DENIED")),
    (UnknownDeployment, Answered(404, _BAD_REQUEST, "model_not_found", "NOT_FOUND")),
    (NotFound, Answered(404, _BAD_REQUEST, "not_found", "NOT_FOUND")),
    (PayloadTooLarge, Answered(413, _BAD_REQUEST, "payload_too_large", "RESOURCE_EXHAUSTED")),
    (AnswerTooLarge, Answered(422, _BAD_REQUEST, "answer_too_large", "RESOURCE_EXHAUSTED")),
    (IdempotencyKeyReused, Answered(409, _BAD_REQUEST, "idempotency_key_reused", "ABORTED")),
    (IdempotentAnswerDropped, Answered(409, _BAD_REQUEST, "idempotent_answer_dropped", "ABORTED")),
    (Unsupported, Answered(400, _BAD_REQUEST, "unsupported", "UNIMPLEMENTED")),
    (Rejected, Answered(400, _BAD_REQUEST, None, "INVALID_ARGUMENT")),
    (
        InsufficientQuota,
        Answered(429, "insufficient_quota", "insufficient_quota", "RESOURCE_EXHAUSTED"),
    ),
    (
        IdempotencyShareSpent,
        Answered(429, "rate_limit_error", "idempotency_share_spent", "RESOURCE_EXHAUSTED"),
    ),
    (RateLimited, Answered(429, "rate_limit_error", "rate_limit_exceeded", "RESOURCE_EXHAUSTED")),
    (Unavailable, Answered(503, "server_error", "unavailable", "UNAVAILABLE")),
    (DeadlineExceeded, Answered(504, "server_error", "deadline_exceeded", "DEADLINE_EXCEEDED")),
    (ModelFailed, Answered(500, "server_error", "model_failed", "INTERNAL")),
)
_BUG = Answered(500, "server_error", "internal_error", "INTERNAL")


def answer_for(error: BaseException) -> Answered:
    """Return what `error` is called at the edges; a bug is an internal error."""
    for kind, answered in _ANSWERS:
        if isinstance(error, kind):
            return answered
    return _BUG


def reason_for(error: BaseException) -> str:
    """Return what the customer may read about `error`."""
    if isinstance(error, BusbarError):
        return error.reason
    return "Internal error. The request was not charged."
