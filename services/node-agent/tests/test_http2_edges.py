"""ModelInfer against a peer that does what HTTP/2 allows and servers seldom do, or forbids."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import pytest
from busbar_node_agent.adapters.triton_rpc import TritonRpc
from busbar_node_agent.usecases.lane import TritonRefused

from .scripted_http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_SIZE,
    HEAD,
    HEADERS,
    INITIAL_WINDOW,
    MAX_CONCURRENT_STREAMS,
    OK,
    PADDED,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    Frame,
    Script,
    Wire,
    answer,
    block,
    credit,
    goaway,
    message,
    reset,
    scripted,
    settings,
)

WITHIN_S = 10.0


async def _infer(address: str, *payloads: bytes) -> list[bytes | BaseException]:
    rpc = TritonRpc(address)
    try:
        calls = (rpc.infer(each, WITHIN_S, "") for each in payloads)
        return await asyncio.gather(*calls, return_exceptions=True)
    finally:
        await rpc.close()


def _codes(outcomes: Sequence[bytes | BaseException]) -> list[str]:
    return [each.code if isinstance(each, TritonRefused) else repr(each) for each in outcomes]


async def _plain(wire: Wire) -> None:
    await wire.open()
    while True:
        wire.send(*answer(await wire.request(), b"plain"))


async def test_a_ping_is_acknowledged_with_its_own_bytes_and_settings_are_too() -> None:
    pong: list[Frame] = []

    async def script(wire: Wire) -> None:
        await wire.open()
        stream = await wire.request()
        wire.send(Frame(PING, 0, 0, b"12345678"))
        pong.append(await wire.until(PING))
        assert any(each.kind == SETTINGS and each.flags & ACK for each in wire.seen)
        wire.send(*answer(stream, b"ok"))

    async with scripted(script) as address:
        assert await _infer(address, b"x") == [b"ok"]

    assert pong == [Frame(PING, ACK, 0, b"12345678")]


async def _padded(wire: Wire) -> None:
    await wire.open()
    stream = await wire.request()
    head = b"\x07" + b"\x80\x00\x00\x00\x10" + block(HEAD) + bytes(7)
    wire.send(
        Frame(HEADERS, END_HEADERS | PADDED | PRIORITY, stream, head),
        Frame(DATA, PADDED, stream, b"\x03" + message(b"padded") + bytes(3)),
        Frame(DATA, PADDED, stream, b"\x00"),
        Frame(HEADERS, END_HEADERS | END_STREAM | PADDED, stream, b"\x00" + block(OK)),
    )


async def _continued(wire: Wire) -> None:
    await wire.open()
    stream, head, tail = await wire.request(), block(HEAD), block(OK)
    wire.send(
        Frame(HEADERS, 0, stream, head[:1]),
        Frame(CONTINUATION, 0, stream, b""),
        Frame(CONTINUATION, END_HEADERS, stream, head[1:]),
        Frame(DATA, 0, stream, message(b"continued")),
        Frame(HEADERS, END_STREAM, stream, tail[:2]),
        Frame(CONTINUATION, END_HEADERS, stream, tail[2:]),
    )


async def _in_crumbs(wire: Wire) -> None:
    await wire.open()
    for frame in answer(await wire.request(), b"in crumbs"):
        for byte in frame.encoded():
            wire.writer.write(bytes([byte]))
            await wire.writer.drain()


async def _in_many_frames(wire: Wire) -> None:
    await wire.open()
    stream = await wire.request()
    head, _, tail = answer(stream, b"")
    crumbs = [Frame(DATA, 0, stream, bytes([byte])) for byte in message(b"in many frames")]
    wire.send(head, *crumbs, Frame(DATA, 0, stream, b""), tail)


async def _with_unknown_frames(wire: Wire) -> None:
    await wire.open((0x4242, 1))
    stream = await wire.request()
    unknown = Frame(0x42, 0xFF, stream, b"whatever")
    wire.send(*[each for frame in answer(stream, b"known") for each in (unknown, frame)])


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (_padded, b"padded"),
        (_continued, b"continued"),
        (_in_crumbs, b"in crumbs"),
        (_in_many_frames, b"in many frames"),
        (_with_unknown_frames, b"known"),
    ],
)
async def test_an_answer_is_the_same_however_it_is_framed(script: Script, expected: bytes) -> None:
    async with scripted(script) as address:
        assert await _infer(address, b"x") == [expected]


async def test_an_upload_obeys_windows_and_frame_sizes_that_change_under_way() -> None:
    payload = os.urandom(300_000)
    total = len(message(payload))

    async def script(wire: Wire) -> None:
        await wire.open((INITIAL_WINDOW, 30_000), (FRAME_SIZE, 30_000))
        wire.send(*answer(await wire.request(), b"settings seen"))
        stream = (await wire.until(HEADERS)).stream
        assert len(await wire.settled(stream)) == 30_000
        before = len(wire.seen)
        # From here the window is 20,000 below zero, so that the first credit must move nothing.
        wire.send(settings((INITIAL_WINDOW, 10_000), (FRAME_SIZE, 20_000)))
        wire.send(credit(0, total), credit(stream, 20_000))
        assert len(await wire.settled(stream)) == 30_000
        wire.send(credit(stream, 1))
        assert len(await wire.settled(stream)) == 30_001
        wire.send(credit(stream, total))
        await wire.until(DATA, END_STREAM)
        assert wire.body(stream) == message(payload)
        assert max(len(each.body) for each in wire.seen[before:]) <= 20_000
        wire.send(*answer(stream, b"obeyed"))

    async with scripted(script) as address:
        rpc = TritonRpc(address)
        assert await rpc.infer(b"x", WITHIN_S, "") == b"settings seen"
        assert await rpc.infer(payload, WITHIN_S, "") == b"obeyed"
        await rpc.close()


async def test_a_cancelled_upload_is_reset_and_frees_the_connection_for_others() -> None:
    stuck = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.open()
        stream = (await wire.until(HEADERS)).stream
        assert len(await wire.settled(stream)) == 65_535
        stuck.set()
        assert await wire.until(RST_STREAM) == reset(stream, 8)
        wire.send(*answer(stream, b"too late"), credit(0, 65_535))
        wire.send(*answer(await wire.request(), b"next"))

    async with scripted(script) as address:
        rpc = TritonRpc(address)
        upload = asyncio.create_task(rpc.infer(bytes(200_000), WITHIN_S, ""))
        await asyncio.wait_for(stuck.wait(), WITHIN_S)
        upload.cancel()
        assert await rpc.infer(b"x", WITHIN_S, "") == b"next"
        await rpc.close()

    assert upload.cancelled()


async def test_goaway_fails_only_what_the_server_will_not_answer() -> None:
    async def script(wire: Wire) -> None:
        await wire.open()
        first, second = await wire.request(), await wire.request()
        wire.send(goaway(first), *answer(first, b"still answered"))
        assert second > first

    async with scripted(script, _plain) as address:
        rpc = TritonRpc(address)
        calls = (rpc.infer(b"x", WITHIN_S, "") for _ in range(2))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        after = await rpc.infer(b"x", WITHIN_S, "")
        await rpc.close()

    assert outcomes[0] == b"still answered"
    assert _codes(outcomes[1:]) == ["UNAVAILABLE"]
    assert after == b"plain"


async def test_a_connection_dropped_between_head_and_body_fails_all_and_the_next_call_works() -> (
    None
):
    async def script(wire: Wire) -> None:
        await wire.open()
        streams = [await wire.request() for _ in range(3)]
        wire.send(answer(streams[0], b"half")[0])
        wire.writer.close()

    async with scripted(script, _plain) as address:
        rpc = TritonRpc(address)
        calls = (rpc.infer(b"x", WITHIN_S, "") for _ in range(3))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        after = await rpc.infer(b"x", WITHIN_S, "")
        await rpc.close()

    assert _codes(outcomes) == ["UNAVAILABLE"] * 3
    assert after == b"plain"


@pytest.mark.parametrize(("error", "code"), [(7, "UNAVAILABLE"), (8, "CANCELLED")])
async def test_a_reset_stream_fails_its_call_and_no_other(error: int, code: str) -> None:
    async def script(wire: Wire) -> None:
        await wire.open()
        first, second = await wire.request(), await wire.request()
        wire.send(reset(first, error), *answer(second, b"unharmed"))

    async with scripted(script) as address:
        outcomes = await _infer(address, b"1", b"2")

    assert _codes(outcomes[:1]) == [code]
    assert outcomes[1] == b"unharmed"


def _instead_of_the_head(*frames: Frame) -> Script:
    async def script(wire: Wire) -> None:
        await wire.open()
        await wire.request()
        wire.send(*frames)

    return script


HUGE = block((*OK, *((f"x-{number}", "a" * 8000) for number in range(40))))


@pytest.mark.parametrize(
    "script",
    [
        _instead_of_the_head(
            Frame(HEADERS, END_STREAM, 1, HUGE[:16_000]),
            *(Frame(CONTINUATION, 0, 1, HUGE[16_000:32_000]) for _ in range(40)),
        ),
        _instead_of_the_head(Frame(HEADERS, END_HEADERS | END_STREAM, 1, HUGE)),
        _instead_of_the_head(Frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff")),
        _instead_of_the_head(Frame(HEADERS, END_HEADERS | PADDED, 1, b"")),
        _instead_of_the_head(Frame(SETTINGS, 0, 0, b"12345")),
        _instead_of_the_head(Frame(RST_STREAM, 0, 1, b"12")),
    ],
    ids=["endless headers", "huge trailers", "bad hpack", "no pad length", "settings", "reset"],
)
async def test_a_broken_frame_costs_the_connection_and_nothing_else(script: Script) -> None:
    async with scripted(script, _plain) as address:
        rpc = TritonRpc(address)
        outcome = await asyncio.gather(rpc.infer(b"x", WITHIN_S, ""), return_exceptions=True)
        after = await rpc.infer(b"x", WITHIN_S, "")
        await rpc.close()

    assert _codes(outcome) == ["UNAVAILABLE"]
    assert after == b"plain"


async def test_an_answer_with_padding_longer_than_its_frame_is_not_taken_for_an_answer() -> None:
    async def script(wire: Wire) -> None:
        await wire.open()
        stream = await wire.request()
        head, _, tail = answer(stream, b"")
        wire.send(head, Frame(DATA, PADDED, stream, b"\xc8" + message(b"x")), tail)

    async with scripted(script) as address:
        assert _codes(await _infer(address, b"x"))[0] in {"UNAVAILABLE", "INTERNAL"}


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (answer(1, b"x")[::2], "INTERNAL"),
        ([answer(1, b"")[0], Frame(DATA, END_STREAM, 1, message(b"no trailers"))], "UNKNOWN"),
        (
            [Frame(HEADERS, END_HEADERS | END_STREAM, 1, block(((":status", "404"),)))],
            "UNIMPLEMENTED",
        ),
    ],
    ids=["OK without a message", "no trailers", "not gRPC"],
)
async def test_an_answer_without_what_makes_it_one_is_an_error(
    frames: list[Frame], code: str
) -> None:
    async with scripted(_instead_of_the_head(*frames)) as address:
        assert _codes(await _infer(address, b"x")) == [code]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (":400", "INTERNAL"),
        (":401", "UNAUTHENTICATED"),
        (":403", "PERMISSION_DENIED"),
        (":404", "UNIMPLEMENTED"),
        (":429", "UNAVAILABLE"),
        (":502", "UNAVAILABLE"),
        (":503", "UNAVAILABLE"),
        (":504", "UNAVAILABLE"),
        (":500", "UNKNOWN"),
        (":200", "UNKNOWN"),
    ],
)
async def test_an_answer_without_a_grpc_status_means_what_its_http_status_does(
    status: str, code: str
) -> None:
    async def script(wire: Wire) -> None:
        await wire.open()
        stream = await wire.request()
        head = block([(":status", status[1:])])
        wire.send(Frame(HEADERS, END_HEADERS | END_STREAM, stream, head))

    async with scripted(script) as address:
        [refused] = await _infer(address, b"x")

    assert isinstance(refused, TritonRefused)
    assert refused.code == code
    assert refused.reason == f"HTTP status {status[1:]}"


@pytest.mark.parametrize(
    "frames",
    [
        [Frame(CONTINUATION, END_HEADERS, 1, block(HEAD))],
        [Frame(HEADERS, 0, 1, block(HEAD)), Frame(CONTINUATION, END_HEADERS, 3, b"")],
        [Frame(HEADERS, 0, 1, block(HEAD)), Frame(DATA, 0, 1, message(b"too early"))],
        [Frame(HEADERS, 0, 1, block(HEAD)), Frame(PING, 0, 0, b"12345678")],
    ],
    ids=["of nothing", "on another stream", "cut by data", "cut by a ping"],
)
async def test_a_header_block_that_is_interrupted_ends_the_connection(frames: list[Frame]) -> None:
    async def script(wire: Wire) -> None:
        await wire.open()
        await wire.request()
        wire.send(*frames)
        await wire.until(PING)  # the connection ends instead

    async with scripted(script) as address:
        [refused] = await _infer(address, b"x")

    assert isinstance(refused, TritonRefused)
    assert refused.code == "UNAVAILABLE"
    assert "broke the protocol" in refused.reason


async def test_no_more_calls_are_open_than_the_server_takes() -> None:
    async def script(wire: Wire) -> None:
        await wire.open((MAX_CONCURRENT_STREAMS, 1))
        while True:
            wire.send(*answer(await wire.request(), b"ok"))

    async with scripted(script) as address:
        rpc = TritonRpc(address)
        try:
            first = await rpc.infer(b"x", WITHIN_S, "")  # brings the settings too
            together = (rpc.infer(b"x", WITHIN_S, "") for _ in range(2))
            outcomes = await asyncio.gather(*together, return_exceptions=True)
            later = await rpc.infer(b"x", WITHIN_S, "")
        finally:
            await rpc.close()

    assert first == later == outcomes[0] == b"ok"
    assert _codes(outcomes[1:]) == ["UNAVAILABLE"]


async def test_what_was_closed_does_not_connect_again() -> None:
    async with scripted(_plain, _plain) as address:
        rpc = TritonRpc(address)
        assert await rpc.infer(b"x", WITHIN_S, "") == b"plain"
        await rpc.close()
        [refused] = await asyncio.gather(rpc.infer(b"x", WITHIN_S, ""), return_exceptions=True)

    assert isinstance(refused, TritonRefused)
    assert (refused.code, refused.reason) == (
        "UNAVAILABLE",
        "the connection to Triton was closed",
    )
