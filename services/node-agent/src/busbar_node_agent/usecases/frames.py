"""The frames that answer an attempt."""

from __future__ import annotations

from busbar_contracts.node.v1 import work_pb2

from busbar_node_agent.domain.verdicts import Failure, FailureKind

_KINDS = {kind: work_pb2.FailureKind.Value(f"FAILURE_KIND_{kind.name}") for kind in FailureKind}
_STARTED = work_pb2.WorkStarted()


def started(work: work_pb2.InferenceWork, node: str) -> bytes:
    """A sign of life."""
    frame = work_pb2.WorkFrame(
        request_id=work.request_id, attempt=work.attempt, node=node, started=_STARTED
    )
    return frame.SerializeToString()


def chunk(
    work: work_pb2.InferenceWork,
    node: str,
    *,
    sequence: int,
    payload: bytes,
    usage: work_pb2.WorkUsage,
    compute_us: int,
) -> bytes:
    """One response of a stream."""
    frame = work_pb2.WorkFrame(
        request_id=work.request_id,
        attempt=work.attempt,
        node=node,
        chunk=work_pb2.WorkChunk(
            sequence=sequence, payload=payload, usage=usage, compute_us=compute_us
        ),
    )
    return frame.SerializeToString()


def finished(work: work_pb2.InferenceWork, node: str, outcome: work_pb2.WorkFinished) -> bytes:
    """The last frame of an attempt that succeeded."""
    frame = work_pb2.WorkFrame(
        request_id=work.request_id, attempt=work.attempt, node=node, finished=outcome
    )
    return frame.SerializeToString()


def failed(work: work_pb2.InferenceWork, node: str, failure: Failure) -> bytes:
    """The last frame of an attempt that failed."""
    frame = work_pb2.WorkFrame(
        request_id=work.request_id,
        attempt=work.attempt,
        node=node,
        failed=work_pb2.WorkFailed(
            kind=_KINDS[failure.kind],
            reason=failure.reason,
            told_to_leave=failure.told_to_leave,
        ),
    )
    return frame.SerializeToString()
