"""Customers who leave: what they asked for ends at Triton, and they pay what reached them."""

from __future__ import annotations

import asyncio
import json
import re
import struct
import time
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import pytest
from busbar_runtime.platform import Platform
from harness.http2_wire import grpc_messages
from harness.link import link
from harness.model_threads import model_threads
from harness.operator import Customer, Operator
from harness.polling import eventually
from tritonclient.grpc import service_pb2

MODEL_HEARS_WITHIN_S = 1.0
TRIES = 3
"""A stalled machine delays anything; what we do wrong ourselves it does each time."""
RESPONSE_TOKENS = 4
"""In each response of tiny-lm's streams but the first."""


def bytes_tensor(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def request_of(model: str, tensors: list[tuple[str, str, bytes]]) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, datatype, raw in tensors:
        request.inputs.add(name=name, datatype=datatype, shape=[1])
        request.raw_input_contents.append(raw)
    return request.SerializeToString()


def endless_stream() -> bytes:
    """A generation that goes on for some seconds, whatever the model would like."""
    sampling = b'{"max_tokens": 1000, "ignore_eos": true}'
    return request_of(
        "tiny-lm",
        [
            ("text_input", "BYTES", bytes_tensor(b"The site")),
            ("sampling_parameters", "BYTES", bytes_tensor(sampling)),
            ("stream", "BOOL", b"\x01"),
            ("return_num_output_tokens", "BOOL", b"\x01"),
        ],
    )


async def in_hand(platform: Platform) -> float:
    """What the node agent works on."""
    async with httpx.AsyncClient(timeout=10, trust_env=False, verify=False) as client:
        text = (await client.get(f"{platform.endpoints['ops']['node-agent']}/metrics")).text
    [line] = [one for one in text.splitlines() if one.startswith("busbar_agent_in_flight ")]
    return float(line.rpartition(" ")[2])


async def test_who_leaves_is_heard_of_by_the_model_within_a_second_and_pays_nothing_for_no_answer(
    platform: Platform, operator: Operator, customer: Customer
) -> None:
    metadata = (("authorization", f"Bearer {customer.key}"),)
    minute = request_of(
        "slow-echo",
        [
            ("INPUT0", "FP32", struct.pack("<f", 1.5)),
            ("delay_ms", "INT32", struct.pack("<i", 60_000)),
        ],
    )

    async def at_it() -> int:
        """The threads of the model, one of them for each request."""
        return model_threads(platform.pids["node-agent"], "slow-echo")

    async def leave() -> float:
        """How long the model went on after it; of the minute that it was to take."""
        idle = await at_it()
        call = infer(minute, metadata=metadata, timeout=90)
        await eventually(
            at_it, within_s=15, what="the model is at it", until=lambda threads: threads > idle
        )
        left_s = time.monotonic()
        call.cancel()
        await eventually(
            at_it, within_s=15, what="the model ends it", until=lambda threads: threads <= idle
        )
        return time.monotonic() - left_s

    async with grpc.aio.insecure_channel(platform.endpoints["grpc"]) as channel:
        infer: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        took_s = [await leave()]
        while min(took_s) > MODEL_HEARS_WITHIN_S and len(took_s) < TRIES:
            took_s.append(await leave())
        await infer(  # what is charged after them says that they were not
            request_of("slow-echo", [("INPUT0", "FP32", struct.pack("<f", 1.5))]),
            metadata=metadata,
            timeout=30,
        )

    records = await eventually(
        lambda: operator.usage(customer.tenant_id), within_s=20, what="the later charge"
    )
    assert min(took_s) <= MODEL_HEARS_WITHIN_S
    assert [record["outcome"] for record in records] == ["completed"]


@pytest.mark.parametrize("stop", [None, "\u03b1" * 40], ids=["no stop string", "a long one"])
async def test_a_stream_over_http_is_charged_for_exactly_what_was_sent_when_its_customer_left(
    platform: Platform, operator: Operator, customer: Customer, stop: str | None
) -> None:
    arrived: list[int] = []
    records: list[dict[str, Any]] = []
    while len(arrived) < TRIES and "abandoned" not in {one["outcome"] for one in records[:1]}:
        arrived.append(await tokens_until_left(platform, customer, stop))
        records = await eventually(
            lambda: operator.usage(customer.tenant_id),
            within_s=20,
            what="the charge",
            until=lambda found: len(found) == len(arrived),
        )

    assert records[0]["outcome"] == "abandoned"
    assert records[0]["output_tokens"] == arrived[-1]


async def tokens_until_left(platform: Platform, customer: Customer, stop: str | None) -> int:
    """Leave a stream at its third piece of text, and read what was sent by then.

    Who only closes its own half of the connection has left and can read all the same. A token
    of tiny-lm is a byte, and only what may become a stop string is held back.
    """
    asked: dict[str, Any] = {"model": "tiny-lm", "prompt": "Where does the money live?"}
    asked |= {"max_tokens": 900, "stop": stop}
    body = json.dumps({**asked, "temperature": 0, "stream": True}).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: busbar\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {customer.key}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    at = urlsplit(platform.endpoints["http"])
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    async with asyncio.timeout(60):
        writer.write(head.encode() + body)
        sent = b""
        while sent.count(b'"text":') < 3:
            piece = await reader.read(65_536)
            assert piece, sent
            sent += piece
        writer.write_eof()
        sent += await reader.read()
        writer.close()
    events = [json.loads(event) for event in re.findall(rb"data: (\{.*\})\n", sent)]
    return sum(len(choice["text"].encode()) for event in events for choice in event["choices"])


async def test_a_stream_over_grpc_is_charged_for_what_was_sent_when_its_customer_left(
    platform: Platform, operator: Operator, customer: Customer
) -> None:
    """Up to one response: whether that left before the customer did grpcio does not say."""
    differences: list[int] = []
    while len(differences) < TRIES and min(differences, default=1000) > RESPONSE_TOKENS:
        sent = await tokens_until_cancelled(platform, customer)
        records = await eventually(
            lambda: operator.usage(customer.tenant_id),
            within_s=20,
            what="the charge",
            until=lambda found: len(found) == len(differences) + 1,
        )
        assert records[0]["outcome"] == "abandoned"
        differences.append(records[0]["output_tokens"] - sent)

    assert min(differences) >= 0
    assert min(differences) <= RESPONSE_TOKENS


async def tokens_until_cancelled(platform: Platform, customer: Customer) -> int:
    """Cancel a stream after its first response; the tokens that were on the wire by then."""
    metadata = (("authorization", f"Bearer {customer.key}"),)
    heard = bytearray()

    def overhear(piece: bytes) -> bytes:
        heard.extend(piece)
        return piece

    port = int(platform.endpoints["grpc"].rpartition(":")[2])
    async with (
        link(lambda: port, back=overhear) as wire,
        grpc.aio.insecure_channel(f"127.0.0.1:{wire.port}") as channel,
    ):
        open_stream: Any = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        call = open_stream(metadata=metadata, timeout=30)
        await call.write(endless_stream())
        first = service_pb2.ModelStreamInferResponse.FromString(await call.read())
        call.cancel()
        assert first.error_message == ""
        await eventually(
            lambda: in_hand(platform),
            within_s=15,
            what="the node is idle",
            until=lambda count: count == 0,
        )
    return sum(tokens_in(message) for message in grpc_messages(bytes(heard)))


def tokens_in(message: bytes) -> int:
    answer = service_pb2.ModelStreamInferResponse.FromString(message).infer_response
    outputs = zip(answer.outputs, answer.raw_output_contents, strict=True)
    return sum(
        int.from_bytes(raw, "little") for output, raw in outputs if output.name.endswith("tokens")
    )
