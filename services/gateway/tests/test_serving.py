"""Requests from the gRPC edge to the record in the USAGE stream, on a real bus."""

from __future__ import annotations

import numpy as np
from gateway_harness import (
    TENANT,
    Platform,
    request,
)


async def test_an_answer_is_charged_before_it_is_delivered(platform: Platform) -> None:
    name, agent = await platform.deploy()

    answer = await platform.infer(request(name))

    assert answer.id == "7"
    assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [0, 1, 2, 3]
    usage = await platform.usage()
    [record] = usage.records
    [work] = agent.works
    assert record.request_id == work.request_id
    assert (record.tenant_id, record.key_id, record.deployment) == (TENANT, "key-1", name)
    assert (record.input_tokens, record.output_tokens, record.compute_us) == (3, 2, 42)
    assert (record.api, record.node, record.attempt) == ("kserve.grpc.infer", "r1.s1.n1", 1)
    assert record.request_bytes == len(work.payload) == len(request(name))
    assert not usage.voids
