"""busbar trace: where a request's time went."""

from __future__ import annotations

import re

from busbar_cli.amounts import show_amount
from busbar_cli.api import Api, Json
from busbar_cli.failures import CommandError, Exit
from busbar_cli.output import DEFAULT, HowMany, Output, show_duration, show_time, table
from busbar_cli.waterfall import draw

_NONE_HELD = (
    "no traces are held: few requests are sampled; send one with a traceparent header "
    "that ends in -01, or set BUSBAR_TRACE_SAMPLE_RATIO"
)
_TRACE_ID = re.compile(r"[0-9a-fA-F]{32}")
_REQUEST_ID = re.compile(r"req_[0-9a-f]{32}")


def trace(
    id: str | None = None,  # noqa: A002  # what the help shows
    *,
    deployment: str | None = None,
    errors: bool = False,
    limit: HowMany = 20,
    output: Output = DEFAULT,
) -> None:
    """List recent traces, or draw one.

    Parameters
    ----------
    id
        A request id (req_…, from the x-request-id header) or a trace id.
    deployment
        Only requests of this deployment.
    errors
        Only those that failed.
    limit
        How many at most.
    """
    if id is None:
        _list(deployment, errors, limit, output)
        return
    document = _document(id)
    if output.json:
        output.print(document, "")
        return
    output.print(document, f"trace {document['traceID']}{_console_link(document['traceID'])}")
    output.print(document, draw(document))


def _list(deployment: str | None, errors: bool, limit: int, output: Output) -> None:
    answer = Api("telemetry").get(
        "/admin/v1/traces", deployment=deployment, errors_only=errors, limit=limit
    )
    rows = [
        [
            show_time(one["start_unix_ns"] / 1_000_000),
            one["request_id"] or one["trace_id"],
            one["tenant"],
            one["deployment"],
            one["status"],
            show_duration(one["duration_ns"] / 1_000),
            one["input_tokens"],
            one["output_tokens"],
            show_amount(one["cost_nanos"]) if one["cost_nanos"] is not None else "",
        ]
        for one in answer["items"]
    ]
    columns = ["TIME", "REQUEST", "TENANT", "DEPLOYMENT", "STATUS", "TOOK>", "IN>", "OUT>", "COST>"]
    output.print(answer, table(columns, rows, empty=_NONE_HELD))


def _document(named: str) -> Json:
    """The trace of a trace id or of a request id, in Jaeger's shape."""
    if not (_TRACE_ID.fullmatch(named) or _REQUEST_ID.fullmatch(named)):
        raise CommandError(
            f"{named!r} is neither a request id (req_ and 32 hex digits) nor a trace id (32)",
            Exit.USAGE,
        )
    api = Api("telemetry")
    if _TRACE_ID.fullmatch(named):
        try:
            return api.get(f"/api/traces/{named}")["data"][0]
        except CommandError as error:
            if error.exit_status is not Exit.NOT_FOUND:
                raise
    summary = api.get(f"/admin/v1/requests/{named}")
    return api.get(f"/api/traces/{summary['trace_id']}")["data"][0]


def _console_link(trace_id: str) -> str:
    console = Api("telemetry").endpoints.console_url
    return f"  {console.rstrip('/')}/traces/{trace_id}" if console else ""
