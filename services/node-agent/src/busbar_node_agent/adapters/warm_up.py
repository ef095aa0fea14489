"""A loaded model's first inference, compared with what its manifest promises.

A Python backend with the wrong numpy answers OK with empty outputs, so a model
counts as ready only when it has returned the right numbers.
"""

from __future__ import annotations

import asyncio

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from busbar_node_agent.adapters.manifest import Manifest
from busbar_node_agent.adapters.outputs import tensors
from busbar_node_agent.domain.tensors import Tensor, TensorMalformed, difference, pack
from busbar_node_agent.usecases.lane import Inference, TritonRefused
from busbar_node_agent.usecases.replica import WarmUpFailed


async def warm_up(triton: Inference, model: str, manifest: Manifest) -> None:
    """Run the warm-up inference; raises WarmUpFailed unless its answer is as expected."""
    try:
        request = _request(model, manifest)
        got = await _answer(triton, request, manifest)
    except TensorMalformed as error:
        raise WarmUpFailed(f"warm-up is malformed: {error}") from error
    except TritonRefused as error:
        reason = f"warm-up failed: {error.code}: {error.reason}"
        hung, busy = error.code == "DEADLINE_EXCEEDED", error.code == "UNAVAILABLE"
        raise WarmUpFailed(reason, hung=hung, busy=busy) from error
    for name, expected in manifest.warmup.expect.items():
        differs = difference(expected.tensor(), got.get(name), expected.tolerance)
        if differs:
            raise WarmUpFailed(f"warm-up answered wrongly: {name} {differs}")


def _request(model: str, manifest: Manifest) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=model, id="warm-up")
    for name, spec in manifest.warmup.inputs.items():
        request.inputs.add(name=name, datatype=spec.datatype, shape=spec.shape)
        request.raw_input_contents.append(pack(spec.tensor()))
    return request.SerializeToString()


async def _answer(triton: Inference, request: bytes, manifest: Manifest) -> dict[str, Tensor]:
    timeout_s = manifest.warmup.timeout_s
    try:
        async with asyncio.timeout(timeout_s + 1.0):
            if not manifest.decoupled:
                return tensors(await triton.infer(request, timeout_s, ""))
            found = [tensors(each) async for each in triton.stream(request, timeout_s, "")]
    except TimeoutError:
        raise TritonRefused("DEADLINE_EXCEEDED", f"no answer in {timeout_s} s") from None
    except DecodeError as error:
        raise TensorMalformed(f"the answer is not a ModelInferResponse: {error}") from error
    answered = [each for each in found if each]
    if len(answered) != 1:
        raise TensorMalformed(f"{len(answered)} responses instead of one")
    return answered[0]
