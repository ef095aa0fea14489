"""Compressed messages on the gRPC port: which are read, and what those that are too large leave."""

from __future__ import annotations

import tracemalloc

import grpc
import pytest
from gateway_harness import AUTH, Platform, eventually, pb, request

SERVICE = "/inference.GRPCInferenceService/"
INFLATED_BYTES = 64_000_000
KEPT_BYTES_MAX = 8_000_000
Code = grpc.StatusCode
COMPRESSIONS = (grpc.Compression.Gzip, grpc.Compression.Deflate)


def channel_with(platform: Platform, compression: grpc.Compression) -> grpc.aio.Channel:
    options = [("grpc.max_send_message_length", -1)]
    address = f"127.0.0.1:{platform.port}"
    return grpc.aio.insecure_channel(address, options=options, compression=compression)


async def test_a_message_too_large_is_not_kept(platform: Platform) -> None:
    await platform.infer(request((await platform.deploy())[0]))
    message = bytes(INFLATED_BYTES)
    async with channel_with(platform, grpc.Compression.Gzip) as channel:
        tracemalloc.start()
        try:
            call = channel.unary_unary(f"{SERVICE}ModelInfer")(message, timeout=30)
            code = await call.code()
            del call
            peak = tracemalloc.get_traced_memory()[1]

            assert code is Code.RESOURCE_EXHAUSTED
            assert peak > INFLATED_BYTES  # once the front bounds it, the README need not warn of it
            await eventually(lambda: tracemalloc.get_traced_memory()[0] < KEPT_BYTES_MAX)
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("compression", COMPRESSIONS, ids=lambda compression: compression.name)
async def test_a_stream_inflates_no_more_than_it_takes(
    platform: Platform, compression: grpc.Compression
) -> None:
    name, _ = await platform.deploy()
    async with channel_with(platform, compression) as channel:
        method = channel.stream_stream(f"{SERVICE}ModelStreamInfer")
        taken = method(metadata=AUTH, timeout=30)
        await taken.write(request(name))
        answer = pb.ModelStreamInferResponse.FromString(await taken.read())
        taken.cancel()
        refused = method(metadata=AUTH, timeout=30)
        await refused.write(bytes(INFLATED_BYTES))

        assert answer.infer_response.outputs[0].name == "OUT"
        assert await refused.code() is Code.RESOURCE_EXHAUSTED
        assert "larger than max" in (await refused.details() or "")
