"""Sends real requests through the real SDKs and shows answers, latency, cost, ledger and traces.

    BUSBAR_HOME=HOME python deploy/demo/demo.py

Needs a running platform with the demo models. Ends with status 1 when anything is not as it
should be.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import openai
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from busbar_cli.amounts import show_amount
from busbar_cli.api import Api, Json
from busbar_cli.endpoints import Endpoints, find_endpoints
from busbar_cli.failures import CommandError, Exit
from busbar_cli.output import table
from busbar_cli.waterfall import draw
from rich.console import Console

TENANT = "demo"
EMBED_MODEL, CHAT_MODEL, TENSOR_MODEL = "all-minilm-l6-v2", "tiny-lm", "simple"
SENTENCES = (
    "A cat sleeps on the sofa.",
    "A kitten naps on the couch.",
    "The invoice is due on Friday.",
    "Please pay the bill by the end of the week.",
)
SETTLED_WITHIN_S = 15.0
SERVICES_IN_A_TRACE = {"gateway", "node-agent", "billing"}
TRITON_WITHIN_S = 2.0
"""Triton sends its spans every 0.5 s; of some requests it makes none (services/node-agent)."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
T = TypeVar("T")


class DemoFailedError(Exception):
    """Something was not as it should be."""


@dataclass(frozen=True)
class Call:
    """One request that was answered."""

    title: str
    model: str
    trace_id: str
    latency_ms: float


@dataclass(frozen=True)
class Receipt:
    """What became of it."""

    call: Call
    usage: Json
    transfers: Sequence[Json]
    trace: Json


def main() -> int:
    summary, _, _ = (__doc__ or "").partition("\n\n")
    argparse.ArgumentParser(prog="./just demo", description=summary).parse_args()
    found = find_endpoints()
    try:
        before = balance()
        calls = [
            embeddings(found),
            chat(found),
            tensors_over_grpc(found),
            tensors_over_http(found),
        ]
        receipts = [receipt(call) for call in calls]
        show_costs(receipts, before)
        show_ledger(receipts)
        show_traces(receipts, found)
    except (DemoFailedError, CommandError) as error:
        console.print(f"[bold red]The demo failed:[/] {error}")
        return 1
    return 0


def heading(text: str) -> None:
    console.print(f"\n[bold cyan]{text}[/]")


def check(condition: bool, complaint: str) -> None:  # noqa: FBT001
    if not condition:
        raise DemoFailedError(complaint)


def sampled() -> tuple[str, str]:
    """A trace id, and the W3C traceparent that asks for it to be kept."""
    trace_id = secrets.token_hex(16)
    return trace_id, f"00-{trace_id}-{secrets.token_hex(8)}-01"


def openai_client(found: Endpoints) -> openai.OpenAI:
    key = found.content["keys"][TENANT]
    return openai.OpenAI(base_url=f"{found.content['http']}/v1", api_key=key)


def timed(send: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    answer = send()
    return answer, (time.perf_counter() - began) * 1000


# --- the requests --------------------------------------------------------------------------------


def embeddings(found: Endpoints) -> Call:
    heading(f"Embeddings  (openai SDK, {EMBED_MODEL})")
    trace_id, traceparent = sampled()
    client = openai_client(found)
    answer, latency_ms = timed(
        lambda: client.embeddings.create(
            model=EMBED_MODEL,
            input=list(SENTENCES),
            extra_headers={"traceparent": traceparent},
        )
    )
    vectors = np.array([one.embedding for one in answer.data])
    cosine = vectors @ vectors.T / np.outer(*[np.linalg.norm(vectors, axis=1)] * 2)

    rows = [
        [f"{at + 1}  {sentence}", *[f"{value:.2f}" for value in cosine[at]]]
        for at, sentence in enumerate(SENTENCES)
    ]
    columns = [f"cosine similarity, {vectors.shape[1]} dimensions"]
    console.print(table([*columns, *[f"{at + 1}>" for at in range(len(SENTENCES))]], rows))
    check(
        cosine[0, 1] > cosine[0, 2] + 0.2 and cosine[2, 3] > cosine[0, 3] + 0.2,
        "sentences of the same meaning are not more alike than the others",
    )
    return Call("embeddings", EMBED_MODEL, trace_id, latency_ms)


def chat(found: Endpoints) -> Call:
    heading(f"Chat, streamed  (openai SDK, {CHAT_MODEL})")
    trace_id, traceparent = sampled()
    question = "What does the scheduler do?"
    console.print(f"[dim]User:[/] {question}\n[dim]Assistant:[/] ", end="")
    pieces, first_ms, finish, usage, began = 0, 0.0, "", None, time.perf_counter()
    for chunk in openai_client(found).chat.completions.create(
        model=CHAT_MODEL,
        messages=[{"role": "user", "content": question}],
        max_tokens=120,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"traceparent": traceparent},
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            if choice.delta.content:
                pieces += 1
                first_ms = first_ms or (time.perf_counter() - began) * 1000
                console.print(choice.delta.content, end="", markup=False, soft_wrap=True)
    latency_ms = (time.perf_counter() - began) * 1000

    check(pieces > 1, "the chat was not streamed")
    check(finish in {"stop", "length"}, f"the chat ended with {finish!r}")
    if usage is None:
        raise DemoFailedError("the stream told no usage")
    tokens = usage.completion_tokens
    rate = tokens / max(latency_ms - first_ms, 1e-3) * 1000
    console.print(
        f"\n[dim]({finish}; first token after {first_ms:.0f} ms, "
        f"{tokens} tokens at {rate:.0f}/s; a tiny model trained on this repository)[/]"
    )
    return Call("chat", CHAT_MODEL, trace_id, latency_ms)


def tensors_over_grpc(found: Endpoints) -> Call:
    heading(f"Tensors over gRPC  (tritonclient, {TENSOR_MODEL})")
    trace_id, traceparent = sampled()
    headers = authorized(found, traceparent)
    with triton_grpc.InferenceServerClient(found.content["grpc"]) as client:
        inputs = sum_and_difference(triton_grpc.InferInput)
        answer, latency_ms = timed(lambda: client.infer(TENSOR_MODEL, inputs, headers=headers))
    show_tensors(answer)
    return Call("tensors, gRPC", TENSOR_MODEL, trace_id, latency_ms)


def tensors_over_http(found: Endpoints) -> Call:
    heading(f"Tensors over HTTP  (tritonclient, {TENSOR_MODEL}, binary)")
    trace_id, traceparent = sampled()
    headers = authorized(found, traceparent)
    address = str(found.content["http"]).removeprefix("http://")
    with triton_http.InferenceServerClient(address) as client:
        inputs = sum_and_difference(triton_http.InferInput)
        answer, latency_ms = timed(lambda: client.infer(TENSOR_MODEL, inputs, headers=headers))
    show_tensors(answer)
    return Call("tensors, HTTP", TENSOR_MODEL, trace_id, latency_ms)


def authorized(found: Endpoints, traceparent: str) -> dict[str, str]:
    key = found.content["keys"][TENANT]
    return {"authorization": f"Bearer {key}", "traceparent": traceparent}


def sum_and_difference(make_input: Callable[..., Any]) -> list[Any]:
    inputs = [make_input(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
    for tensor, values in zip(inputs, (LEFT, RIGHT), strict=True):
        tensor.set_data_from_numpy(values)
    return inputs


LEFT = np.arange(16, dtype=np.int32).reshape(1, 16)
RIGHT = np.full((1, 16), 3, dtype=np.int32)


def show_tensors(answer: Any) -> None:
    total, difference = answer.as_numpy("OUTPUT0"), answer.as_numpy("OUTPUT1")
    console.print(f"sum         {total[0].tolist()}\ndifference  {difference[0].tolist()}")
    check(np.array_equal(total, LEFT + RIGHT), "the sum is wrong")
    check(np.array_equal(difference, LEFT - RIGHT), "the difference is wrong")


# --- what they cost ------------------------------------------------------------------------------


def balance() -> int:
    return int(Api("billing").get(f"/admin/v1/tenants/{TENANT}/balance")["balance_nanos"])


def receipt(call: Call) -> Receipt:
    """Wait until the request is charged and its trace is complete."""
    triton_until = time.monotonic() + TRITON_WITHIN_S
    trace = eventually(
        lambda: complete_trace(call.trace_id, wait_for_triton=time.monotonic() < triton_until),
        f"the trace of {call.title}",
    )
    request_id = next(
        tag["value"]
        for span in trace["spans"]
        for tag in span["tags"]
        if tag["key"] == "busbar.request_id"
    )
    usage = Api("billing").get(f"/admin/v1/usage/{request_id}")
    transfers = Api("billing").get("/admin/v1/ledger", request_id=request_id)["items"]

    check(bool(transfers), f"no ledger transfer stands behind {call.title}")
    for transfer in transfers:
        amounts = [posting["amount_nanos"] for posting in transfer["postings"]]
        check(sum(amounts) == 0, f"transfer {transfer['transfer_id']} does not sum to zero")
    return Receipt(call, usage, transfers, trace)


def complete_trace(trace_id: str, *, wait_for_triton: bool) -> Json | None:
    """The trace in Jaeger's shape, once every service has told its part, the gateway to its end."""
    try:
        (trace,) = Api("telemetry").get(f"/api/traces/{trace_id}")["data"]
    except CommandError as error:
        if error.exit_status is Exit.NOT_FOUND:
            return None
        raise
    # A span is sent when it ends: the gateway's first and last, around all others, come late.
    tops = [span for span in trace["spans"] if not is_child(span, trace)]
    awaited = {"triton"} if wait_for_triton else set[str]()
    whole = len(tops) == 1 and trace["processes"][tops[0]["processID"]]["serviceName"] == "gateway"
    told = services_in(trace)
    return trace if whole and told >= SERVICES_IN_A_TRACE | awaited else None


def services_in(trace: Json) -> set[str]:
    return {process["serviceName"] for process in trace["processes"].values()}


def is_child(span: Json, trace: Json) -> bool:
    known = {each["spanID"] for each in trace["spans"]}
    return any(reference["spanID"] in known for reference in span["references"])


def eventually(look: Callable[[], T | None], what: str) -> T:
    deadline = time.monotonic() + SETTLED_WITHIN_S
    while True:
        found = look()
        if found is not None:
            return found
        check(time.monotonic() < deadline, f"{what}: not complete within {SETTLED_WITHIN_S:g} s")
        time.sleep(0.1)


def show_costs(receipts: Sequence[Receipt], before: int) -> None:
    heading("What it cost")
    rows = [
        [
            one.call.title,
            one.usage["deployment"],
            f"{one.call.latency_ms:.1f} ms",
            one.usage["input_tokens"] or "",
            one.usage["output_tokens"] or "",
            show_amount(one.usage["amount_nanos"], one.usage["currency"]),
            one.usage["request_id"],
        ]
        for one in receipts
    ]
    columns = ["REQUEST", "MODEL", "LATENCY>", "IN>", "OUT>", "COST>", "ID"]
    console.print(table(columns, rows), soft_wrap=True)
    spent, after = sum(one.usage["amount_nanos"] for one in receipts), balance()
    console.print(
        f"balance of tenant {TENANT}: {show_amount(before)} - {show_amount(spent)} "
        f"= {show_amount(after)}"
    )
    check(before - spent == after, "the balance does not show what the requests cost")


def show_ledger(receipts: Sequence[Receipt]) -> None:
    heading("The ledger lines behind it")
    rows: list[list[object]] = []
    for one in receipts:
        for transfer in one.transfers:
            head = [one.call.title, transfer["kind"], transfer["transfer_id"]]
            for posting in transfer["postings"]:
                account = " of ".join(filter(None, [posting["account"], posting["tenant_id"]]))
                amount = show_amount(posting["amount_nanos"], posting["currency"])
                rows.append([*head, account, amount])
                head = ["", "", ""]
    columns = ["REQUEST", "KIND", "TRANSFER", "ACCOUNT", "AMOUNT>"]
    console.print(table(columns, rows), soft_wrap=True)


def show_traces(receipts: Sequence[Receipt], found: Endpoints) -> None:
    heading("One request, one trace")
    by_triton = [one for one in receipts if "triton" in services_in(one.trace)]
    check(bool(by_triton), "Triton told nothing of any of the requests")
    shown = next((one for one in by_triton if one.call.title == "chat"), by_triton[0])
    console.print(draw(shown.trace))
    console.print()
    for one in receipts:
        url = f"{found.console_url.rstrip('/')}/traces/{one.call.trace_id}"
        console.print(f"{one.call.title:<14} {url}", soft_wrap=True)
    console.print(
        "[dim]./just up leaves the platform running; sign in there with the operator key "
        "that it prints.[/]",
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
