"""Cost records outlive the agent that measured them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import resource
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from busbar_contracts.node.v1.status_pb2 import WorkMeasured, WorkMeasuredBatch
from busbar_messaging import provision
from busbar_messaging.topology import NodeId, measured_stream
from busbar_node_agent.adapters.journal import Journal
from busbar_node_agent.adapters.measured import MeasuredPublisher
from busbar_node_agent.domain.journal import MARK_BYTES, Halves, frame, mark, read
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from .conftest import NatsServer, provisioning
from .node_bench import poll

NODE = NodeId("journal", "s1", "n1")
KIB = 1024


class Paper:
    """A journal in memory, written as the adapter writes it."""

    def __init__(self, size_bytes: int) -> None:
        self.content = bytearray(size_bytes)
        self.halves = Halves((size_bytes - MARK_BYTES) // 2)

    def write(self, number: int, record: bytes, *, breaks_off: bool = False) -> bool:
        framed = frame(number, record)
        at = self.halves.place(len(framed))
        if at is None:
            return False
        if breaks_off:
            self.content[at : at + 8] = framed[:8]
            return False
        self.content[at : at + len(framed)] = framed
        self.halves.written(number, len(framed))
        return True

    def stored(self, until: int) -> None:
        self.halves.stored(until)
        self.content[: len(mark(until))] = mark(until)


RECORDS = st.tuples(st.binary(max_size=150), st.sampled_from([False, False, False, True]))


@pytest.mark.parametrize("also", [st.integers(1, 9), st.nothing()], ids=["stored", "never-stored"])
@given(data=st.data())
def test_what_was_written_and_not_stored_is_read_again(
    also: st.SearchStrategy[int], data: st.DataObject
) -> None:
    paper, kept, number = Paper(MARK_BYTES + 400), dict[int, bytes](), 0
    for event in data.draw(st.lists(st.one_of(RECORDS, also), max_size=60)):
        if isinstance(event, tuple):
            record, breaks_off = event
            number += 1
            if paper.write(number, record, breaks_off=breaks_off):
                kept[number] = record
        elif kept:
            until = min(min(kept) + event, number + 1)
            kept = {one: record for one, record in kept.items() if one >= until}
            paper.stored(until)

        assert read(bytes(paper.content)) == sorted(kept.items())


def test_what_still_fits_is_kept_and_read_after_what_did_not() -> None:
    paper = Paper(MARK_BYTES + 400)
    sizes = [*[40] * 8, 10]
    kept = [number for number, size in enumerate(sizes, 1) if paper.write(number, bytes(size))]

    assert kept == [1, 2, 3, 4, 5, 6, 9]
    assert [number for number, _ in read(bytes(paper.content))] == kept


def test_work_is_refused_while_there_is_room_for_what_is_in_hand() -> None:
    paper, record = Paper(MARK_BYTES + 2 * 8 * KIB), bytes(100)
    numbers = itertools.count(1)
    while not paper.halves.closed:
        assert paper.write(next(numbers), record)
    in_hand = sum(paper.write(next(numbers), record) for _ in range(100))
    paper.stored(next(numbers))

    assert in_hand * len(frame(1, record)) > 0.2 * 8 * KIB
    assert in_hand < 100, "it is bounded"
    assert not paper.halves.closed


def test_what_is_damaged_is_not_read_nor_what_follows_it_in_its_half() -> None:
    paper = Paper(MARK_BYTES + 2 * KIB)
    for number in range(1, 12):
        assert paper.write(number, bytes([number]) * 100)
    third = MARK_BYTES + 2 * len(frame(1, bytes(100))) + 50
    paper.content[third] ^= 1
    other_half = [number for number in range(1, 12) if number > 8]

    assert [number for number, _ in read(bytes(paper.content))] == [1, 2, *other_half]


@pytest.fixture
async def site(nats_server: NatsServer, bus: Client) -> AsyncIterator[Client]:
    """A bus with the stream of the node's site."""
    await provision.apply(bus, provisioning(nats_server, NODE.region))
    yield bus
    await bus.jetstream().purge_stream(measured_stream(NODE.region, NODE.site).name)


def run(site: Client, folder: Path, run_id: str) -> tuple[MeasuredPublisher, Journal]:
    journal = Journal(folder, run_id, 64 * KIB)
    assert journal.open()
    return MeasuredPublisher(site.jetstream(timeout=5), NODE, run_id, journal), journal


async def stored(site: Client) -> dict[str, tuple[int, list[bytes]]]:
    """By run, the first number and the requests of its batch in the site's stream."""
    name = measured_stream(NODE.region, NODE.site).name
    info = await site.jetstream().stream_info(name)
    found = [
        await site.jetstream().get_msg(name, number)
        for number in range(max(1, info.state.first_seq), info.state.last_seq + 1)
    ]
    batches = [WorkMeasuredBatch.FromString(one.data or b"") for one in found]
    return {
        one.agent_run_id: (one.first_sequence, [record.request_id for record in one.records])
        for one in batches
    }


async def test_the_next_run_stores_what_a_killed_one_had_measured(
    site: Client, tmp_path: Path
) -> None:
    killed, _ = run(site, tmp_path, "first")
    for number in range(1, 4):
        killed.add(WorkMeasured(request_id=bytes([number])))
    following, _ = run(site, tmp_path, "second")
    following.add(WorkMeasured(request_id=b"new"))
    publishing = asyncio.create_task(following.publish_for_ever())

    async def both() -> bool:
        return len(await stored(site)) == 2

    await poll(both, 20.0)
    seen = await stored(site)
    await following.flush(5.0)
    publishing.cancel()

    assert seen == {"first": (1, [b"\x01", b"\x02", b"\x03"]), "second": (1, [b"new"])}
    assert list(tmp_path.iterdir()) == [], "nothing is left that is stored"


async def test_what_cannot_be_read_of_earlier_runs_holds_up_nothing(
    site: Client, tmp_path: Path
) -> None:
    (tmp_path / "lost+found").mkdir()
    earlier, journal = run(site, tmp_path, "earlier")
    earlier.add(WorkMeasured(request_id=b"readable"))
    assert journal.write(2, b"\xff no record")
    following, _ = run(site, tmp_path, "following")
    following.add(WorkMeasured(request_id=b"new"))
    publishing = asyncio.create_task(following.publish_for_ever())

    async def both() -> bool:
        return set(await stored(site)) == {"earlier", "following"} or publishing.done()

    await poll(both, 20.0)
    seen, ended = await stored(site), publishing.done()
    await following.flush(5.0)
    publishing.cancel()

    assert not ended
    assert seen == {"earlier": (1, [b"readable"]), "following": (1, [b"new"])}
    assert [path.name for path in tmp_path.iterdir()] == ["lost+found"]


async def test_a_folder_that_is_none_does_not_end_the_publishing(
    site: Client, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file, where the folder is to be")
    journal = Journal(tmp_path / "taken", "run", 64 * KIB)
    publisher = MeasuredPublisher(site.jetstream(timeout=5), NODE, "run", journal)
    publisher.add(WorkMeasured(request_id=b"in memory"))
    publishing = asyncio.create_task(publisher.publish_for_ever())

    async def seen() -> bool:
        return "run" in await stored(site) or publishing.done()

    await poll(seen, 20.0)
    ended = publishing.done()
    publishing.cancel()

    assert not ended


@contextlib.contextmanager
def no_file_may_grow() -> Iterator[None]:
    """As on a disk that fails: every write to a file is an error, for this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_failed_write_costs_its_record_alone_and_is_got_over_without_another_one(
    site: Client, tmp_path: Path
) -> None:
    publisher, journal = run(site, tmp_path, "only")
    assert journal.write(1, b"before")
    with no_file_may_grow():
        kept = journal.write(2, b"failed")
    refused = publisher.refusal()
    keeping = asyncio.create_task(publisher.keep_room())

    async def taken_again() -> bool:
        return not publisher.refusal()

    await poll(taken_again, 20.0)
    keeping.cancel()

    assert not kept
    assert "cost records cannot be kept" in refused
    assert journal.write(3, b"after")
    assert Journal(tmp_path, "next", 64 * KIB).left_behind() == {
        "only": [(1, b"before"), (3, b"after")]
    }


async def test_an_agent_that_ends_takes_nothing_and_waits_for_no_records(
    site: Client, tmp_path: Path
) -> None:
    publisher, _ = run(site, tmp_path, "ending")
    before = publisher.refusal()
    await publisher.flush(1.0)

    assert before == ""
    assert publisher.refusal() == "the agent ends, and keeps no more cost records"


async def test_a_node_whose_journal_is_full_takes_no_work_until_it_is_stored(
    site: Client, tmp_path: Path
) -> None:
    publisher, _ = run(site, tmp_path, "only")
    before, record = publisher.refusal(), WorkMeasured(tenant_id="t" * 100)
    for _ in range(1_000):
        publisher.add(record)
        if publisher.refusal():
            break
    full = publisher.refusal()
    publishing = asyncio.create_task(publisher.publish_for_ever())

    async def taken_again() -> bool:
        return not publisher.refusal()

    await poll(taken_again, 20.0)
    publishing.cancel()

    assert before == ""
    assert "cost records wait to be stored at the site" in full


async def test_a_folder_that_cannot_be_written_has_the_node_refuse_work_and_say_why(
    site: Client, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file, where the folder is to be")
    journal = Journal(tmp_path / "taken", "run", 64 * KIB)
    opened = journal.open()
    publisher = MeasuredPublisher(site.jetstream(timeout=5), NODE, "run", journal)
    refused = publisher.refusal()
    (tmp_path / "taken").unlink()

    assert not opened
    assert "no room for cost records" in refused
    assert journal.open()
    assert publisher.refusal() == ""
