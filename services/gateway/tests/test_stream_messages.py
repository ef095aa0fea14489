"""What a stream says of each request: whose answer it is, and by which id to ask about it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from busbar_contracts.node.v1 import work_pb2
from busbar_gateway.adapters.grpc.stream_messages import REQUEST_ID
from busbar_gateway.adapters.identity import public_id
from gateway_harness import KEY, Platform, Say, chunk, echo, eventually, failing, pb, request
from stream_client import Client, asked_as, held, numbered

Kind = work_pb2.FailureKind


def request_id(answer: Any) -> str:
    return answer.infer_response.parameters[REQUEST_ID].string_param


async def test_an_error_names_the_request_that_failed(platform: Platform) -> None:
    name, agent = await platform.deploy()

    async def third_fails(work: work_pb2.InferenceWork, say: Say) -> None:
        fails = failing(Kind.FAILURE_KIND_REJECTED, "not this one")
        await (fails if asked_as(work) == "3" else echo)(work, say)

    agent.behaviour = third_fails
    misfit = pb.ModelInferRequest(model_name=name, id="2").SerializeToString()
    client = Client(platform)
    await client.ask(numbered("no-such-model", 1), misfit, numbered(name, 3), b"\xff", b"")

    errors = [(a.infer_response.id, bool(a.error_message)) for a in client.answers]
    assert errors == [("1", True), ("2", True), ("3", True), ("", True), ("", True)]
    ids = [request_id(answer) for answer in client.answers]
    assert all(one.startswith("req_") for one in ids)
    assert len(set(ids)) == len(ids)
    assert ids[2] == public_id(agent.works[0].request_id)


async def test_an_answer_tells_the_id_under_which_it_is_charged(platform: Platform) -> None:
    name, _ = await platform.deploy()
    client = Client(platform)
    await client.ask(numbered(name, 1), numbered(name, 2))

    charged = {public_id(one) for one in (await platform.usage()).charged}
    assert {request_id(answer) for answer in client.answers} == charged
    assert [answer.infer_response.id for answer in client.answers] == ["1", "2"]


async def test_what_ends_an_accepted_request_says_so(platform: Platform) -> None:
    name, _ = await platform.deploy()
    fails, agent = await platform.deploy()
    agent.behaviour = failing(Kind.FAILURE_KIND_REJECTED)
    client = Client(platform)
    asks = pb.ModelInferRequest.FromString(numbered(name, 2))
    asks.parameters["triton_enable_empty_final_response"].bool_param = True
    misfit = pb.ModelInferRequest(model_name=name).SerializeToString()
    await client.ask(numbered(name, 1), asks.SerializeToString(), numbered(fails, 3), misfit)

    says = [dict(answer.infer_response.parameters) for answer in client.answers]
    assert [one.get("triton_final_response") for one in says] == [
        pb.InferParameter(bool_param=True),
        pb.InferParameter(bool_param=True),
        pb.InferParameter(bool_param=True),
        None,
    ]


async def test_what_a_decoupled_model_says_leaves_byte_for_byte(platform: Platform) -> None:
    name, agent = await platform.deploy(decoupled=True)

    async def marked(work: work_pb2.InferenceWork, say: Say) -> None:
        final = {"triton_final_response": pb.InferParameter(bool_param=True)}
        await say(chunk=chunk(work, 0))
        await say(chunk=chunk(work, 1, parameters=final))
        await say(finished=work_pb2.WorkFinished(chunk_count=2))

    agent.behaviour = marked
    client = Client(platform)
    await client.ask(request(name))
    [record] = (await platform.usage()).records

    assert client.answers[1].infer_response.parameters["triton_final_response"].bool_param
    assert record.response_bytes == sum(a.infer_response.ByteSize() for a in client.answers)


async def test_an_error_of_a_decoupled_model_waits_for_nobody(platform: Platform) -> None:
    plain, agent = await platform.deploy()
    decoupled, _ = await platform.deploy(decoupled=True)
    go_on = asyncio.Event()
    agent.behaviour = held(1, until=go_on)
    misfit = pb.ModelInferRequest(model_name=decoupled, id="2").SerializeToString()
    client = Client(platform)
    call = client.ask(numbered(plain, 1), misfit)
    await eventually(lambda: client.answers)
    go_on.set()
    await call

    assert [a.infer_response.id for a in client.answers] == ["2", "1"]


async def test_the_stock_client_streams_unchanged(platform: Platform) -> None:
    name, _ = await platform.deploy()
    given = triton.InferInput("IN", [4], "FP32")
    given.set_data_from_numpy(np.arange(4, dtype=np.float32))

    async def asked() -> AsyncIterator[dict[str, Any]]:
        for model in (name, "no-such-model", name):
            yield {"model_name": model, "inputs": [given], "request_id": "mine"}

    async with triton.InferenceServerClient(f"127.0.0.1:{platform.port}") as client:
        heard = [
            one
            async for one in client.stream_infer(
                asked(), headers={"authorization": f"Bearer {KEY}"}
            )
        ]

    results = [result for result, _ in heard]
    assert [error is None for _, error in heard] == [True, False, True]
    assert [results[n].as_numpy("OUT").tolist() for n in (0, 2)] == [[0, 1, 2, 3]] * 2
    assert results[0].get_response().id == "mine"
