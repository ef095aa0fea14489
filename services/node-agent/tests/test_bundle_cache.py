"""The cache of bundles: what it fetches, what it checks, what it lets go."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from busbar_errors import NotFound, Rejected, Unavailable
from busbar_messaging.bundles.sealing import SigningKey, TrustedKeys
from busbar_messaging.bundles.store import BundleStore
from busbar_messaging.topology import MODELS
from busbar_node_agent.adapters.bundle_cache import CHUNKS_AT_ONCE, BundleCache
from busbar_node_agent.adapters.cache_disk import CacheDisk, Piece, write_piece
from busbar_node_agent.usecases.replica import Bundle
from harness.bundles import KEY, Made, make
from nats.aio.client import Client

KIB = 1024
MIB = 1024 * KIB
CHUNK_BYTES = 64 * KIB
WEIGHTS_BYTES = 10 * CHUNK_BYTES
PUBLISHER = SigningKey.make()
TRUSTED = TrustedKeys.of([PUBLISHER.public], [KEY.public])
MANIFEST = b"""\
name: m
version: "1"
warmup: {inputs: {}, expect: {B: {datatype: INT32, shape: [1], data: [1]}}}
"""
_seeds = iter(range(1_000_000))


def weights(size_bytes: int = WEIGHTS_BYTES) -> bytes:
    """Bytes that no other test has."""
    return random.Random(f"weights {next(_seeds)}").randbytes(size_bytes)


def model(files: dict[str, bytes], backend: str = "python") -> Made:
    config = f'backend: "{backend}"'.encode()
    return make({"busbar.yaml": MANIFEST, "config.pbtxt": config, **files}, chunk_bytes=CHUNK_BYTES)


@dataclass
class CountingStore:
    """The store, and which chunks were asked for."""

    store: BundleStore
    asked: list[bytes] = field(default_factory=list[bytes])

    async def bundle(self, digest: str) -> object:
        return await self.store.bundle(digest)

    async def chunk(self, sha256: bytes) -> bytes:
        self.asked.append(sha256)
        return await self.store.chunk(sha256)

    def taken(self) -> int:
        """How many chunks were asked for since the last time; none of them twice."""
        asked, self.asked = self.asked, []
        assert len(asked) == len(set(asked))
        return len(asked)


@dataclass
class Bench:
    store: CountingStore
    root: Path
    client: Client

    def cache(self, *, bytes_max: int = 64 * MIB, trusted: TrustedKeys = TRUSTED) -> BundleCache:
        """An agent's cache; another one on the same disk is what a restart leaves."""
        disk = CacheDisk(self.root, bytes_max)
        return BundleCache(self.store, trusted, disk, bundle_bytes_max=32 * MIB)  # type: ignore[arg-type]

    async def put(self, made: Made) -> str:
        return await made.put(self.store.store)

    async def delete_chunk(self, sha256: bytes) -> None:
        objects = await self.client.jetstream().object_store(MODELS.name)
        await objects.delete(f"chunk-{sha256.hex()}")

    def size_bytes(self) -> int:
        kept = [*(self.root / "files").iterdir(), *(self.root / "partial").iterdir()]
        return sum(path.stat().st_size for path in kept)


@pytest.fixture
def bench(model_store: BundleStore, bus: Client, tmp_path: Path) -> Bench:
    return Bench(CountingStore(model_store), tmp_path / "bundles", bus)


def content(bundle: Bundle, path: str) -> bytes:
    return bundle.files[path].read_bytes()


async def test_a_bundle_is_fetched_once_and_outlives_the_agent(bench: Bench) -> None:
    data = weights()
    digest = await bench.put(model({"1/weights.bin": data, "1/empty.txt": b""}))

    first = await bench.cache().fetch(digest)
    fetched = bench.store.taken()
    again = await bench.cache().fetch(digest)

    assert content(first, "1/weights.bin") == content(again, "1/weights.bin") == data
    assert content(again, "1/empty.txt") == b""
    assert (fetched, bench.store.taken()) == (12, 0)


async def test_a_new_version_fetches_only_what_no_cached_one_has(bench: Bench) -> None:
    data = weights()
    cache = bench.cache()
    await cache.fetch(await bench.put(model({"1/weights.bin": data})))
    bench.store.taken()

    tuned = data[:CHUNK_BYTES] + weights(CHUNK_BYTES) + data[2 * CHUNK_BYTES :]
    second = await cache.fetch(await bench.put(model({"2/weights.bin": tuned})))

    assert content(second, "2/weights.bin") == tuned
    assert bench.store.taken() == 1


async def test_bundles_with_a_file_in_common_fetch_it_once_between_them(bench: Bench) -> None:
    data = weights()
    made = [model({"1/weights.bin": data, "1/own.txt": weights(10)}) for _ in range(3)]
    digests = [await bench.put(one) for one in made]
    cache = bench.cache()

    bundles = await asyncio.gather(*map(cache.fetch, digests))

    assert {content(one, "1/weights.bin") for one in bundles} == {data}
    assert bench.store.taken() == 10 + 3 + 2
    assert bench.size_bytes() < 2 * len(data)


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(3 * CHUNK_BYTES + 5)
        file.write(b"\0\1\2\3\4\5\6\7")


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(9 * CHUNK_BYTES + 1)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize(
    ("damage", "chunks"), [(flip, 1), (cut, 1), (lengthen, 0), (Path.unlink, 10)]
)
async def test_a_damaged_file_is_noticed_and_only_what_is_bad_fetched_again(
    bench: Bench, damage: Callable[[Path], None], chunks: int
) -> None:
    data = weights()
    digest = await bench.put(model({"1/weights.bin": data}))
    path = (await bench.cache().fetch(digest)).files["1/weights.bin"]
    bench.store.taken()

    path.chmod(0o644)
    damage(path)
    again = await bench.cache().fetch(digest)

    assert content(again, "1/weights.bin") == data
    assert bench.store.taken() == chunks


async def test_a_repaired_file_does_not_change_under_what_has_it_open(bench: Bench) -> None:
    digest = await bench.put(model({"1/weights.bin": weights()}))
    path = (await bench.cache().fetch(digest)).files["1/weights.bin"]
    path.chmod(0o644)
    flip(path)
    with path.open("rb") as file:
        before = file.read()
        await bench.cache().fetch(digest)
        file.seek(0)

        assert file.read() == before != path.read_bytes()


async def test_a_fetch_that_broke_off_goes_on_where_it_was(bench: Bench) -> None:
    data = weights()
    made = model({"1/weights.bin": data})
    digest = await bench.put(made)
    last = list(made.chunks)[9]
    await bench.delete_chunk(last)

    with pytest.raises(NotFound, match=last.hex()):
        await bench.cache().fetch(digest)
    fetched = bench.store.taken()
    await bench.store.store.put_chunk(last, made.chunks[last])
    bundle = await bench.cache().fetch(digest)

    assert content(bundle, "1/weights.bin") == data
    assert fetched > 8
    assert bench.store.taken() <= 12 - fetched + CHUNKS_AT_ONCE, "what came before is kept"


async def test_a_chunk_that_was_replaced_in_the_store_gets_nowhere(bench: Bench) -> None:
    made = model({"1/weights.bin": weights()})
    digest = await bench.put(made)
    objects = await bench.client.jetstream().object_store(MODELS.name)
    victim = next(one for one, piece in made.chunks.items() if len(piece) == CHUNK_BYTES)
    await objects.put(f"chunk-{victim.hex()}", b"evil" * (CHUNK_BYTES // 4))

    with pytest.raises(Rejected, match="has another digest"):
        await bench.cache().fetch(digest)

    assert all(b"evil" not in path.read_bytes() for path in bench.root.rglob("*") if path.is_file())


# Chunk → size listed, of a file of ten chunks of CHUNK_BYTES.
MISLISTED = {
    "cut short": {9: CHUNK_BYTES - 1},
    "with more behind it": {9: CHUNK_BYTES + 1},
    "into the next": {3: CHUNK_BYTES - 1},
    "from the next": {3: CHUNK_BYTES - 1, 4: CHUNK_BYTES + 1},
}


@pytest.mark.parametrize("sizes", MISLISTED.values(), ids=MISLISTED)
async def test_a_list_with_wrong_sizes_makes_no_file(bench: Bench, sizes: dict[int, int]) -> None:
    made = model({"1/weights.bin": weights()})
    digest = await bench.put(made.listing("1/weights.bin", sizes))

    for _ in range(2):
        with pytest.raises(Rejected, match=rf"lists {sizes[min(sizes)]} bytes .* {CHUNK_BYTES}"):
            await bench.cache().fetch(digest)

    assert all(path.stat().st_size < CHUNK_BYTES for path in (bench.root / "files").iterdir())


@pytest.mark.parametrize("sizes", MISLISTED.values(), ids=MISLISTED)
async def test_a_list_with_wrong_sizes_leaves_what_shares_its_chunks_alone(
    bench: Bench, sizes: dict[int, int]
) -> None:
    data = weights()
    made = model({"1/weights.bin": data})
    path = (await bench.cache().fetch(await bench.put(made))).files["1/weights.bin"]
    made_at_ns = path.stat().st_ctime_ns
    bench.store.taken()

    with pytest.raises(Rejected, match="lists"):
        await bench.cache().fetch(await bench.put(made.listing("1/weights.bin", sizes)))
    bench.store.taken()
    again = await bench.cache().fetch(made.digest)

    assert content(again, "1/weights.bin") == data
    assert path.stat().st_ctime_ns == made_at_ns, "the file was made anew"
    assert bench.store.taken() == 0


@pytest.mark.parametrize("junk", [b"", b"\xff\xff", b"\x0a\x02\xff\xff"], ids=["empty", "a", "b"])
async def test_a_broken_note_is_fetched_again_and_spoils_nothing(bench: Bench, junk: bytes) -> None:
    digest = await bench.put(model({"1/weights.bin": weights()}))
    other = await bench.put(model({"1/weights.bin": weights()}))
    await bench.cache().fetch(digest)
    (bench.root / "bundles" / digest.removeprefix("sha256:")).write_bytes(junk)

    cache = bench.cache()
    await cache.fetch(other)
    bundle = await cache.fetch(digest)

    assert len(content(bundle, "1/weights.bin")) == WEIGHTS_BYTES


async def test_what_an_older_agent_left_is_cleared_away(bench: Bench) -> None:
    (bench.root / ("0" * 64) / "1").mkdir(parents=True)
    (bench.root / "x.tar.partial").write_bytes(b"x")
    bench.cache()

    assert sorted(path.name for path in bench.root.iterdir()) == ["bundles", "files", "partial"]


async def test_a_cache_that_somebody_deletes_is_made_again(bench: Bench) -> None:
    digest = await bench.put(model({"1/weights.bin": weights()}))
    cache = bench.cache()
    await cache.fetch(digest)

    shutil.rmtree(bench.root)
    bundle = await cache.fetch(digest)

    assert len(content(bundle, "1/weights.bin")) == WEIGHTS_BYTES


async def test_a_cache_that_is_deleted_while_it_is_used_is_not_called_a_bad_disk(
    bench: Bench,
) -> None:
    bench.cache()
    shutil.rmtree(bench.root)

    with pytest.raises(Unavailable, match=r"deleted while it was used: .*partial"):
        write_piece(bench.root / "partial" / "key", Piece(0, 1, b""), b"x")


# --- whose word counts


async def test_a_key_that_is_trusted_no_more_ends_what_it_vouched_for(bench: Bench) -> None:
    digest = await bench.put(model({"1/weights.bin": weights()}))
    await bench.cache().fetch(digest)

    with pytest.raises(Rejected, match="no key that is trusted"):
        await bench.cache(trusted=TrustedKeys.of([], [PUBLISHER.public])).fetch(digest)


@pytest.mark.parametrize(
    ("backend", "files", "reason"),
    [
        ("python", {"1/model.py": b""}, "backend 'python' runs"),
        ("onnxruntime", {"1/model.onnx": b"\x08", "1/x.bin": b"\x80\x04."}, "is a pickle"),
        ("onnxruntime", {"1/model.onnx": b"\x08", "1/x.so": b""}, "not known to be data"),
        ("onnxruntime", {"1/model.onnx": b"#!/bin/sh"}, "is a script"),
    ],
    ids=["python", "pickle", "library", "script"],
)
async def test_code_without_an_operators_approval_is_refused_whoever_let_it_in(
    bench: Bench, backend: str, files: dict[str, bytes], reason: str
) -> None:
    made = model(files, backend)
    published = await bench.put(made.sealed_by(PUBLISHER, approves_code=False))

    with pytest.raises(Rejected, match="no operator approved") as refused:
        await bench.cache().fetch(published)
    approved = await bench.put(made)

    assert reason in refused.value.reason
    assert (await bench.cache().fetch(approved)).digest == approved


async def test_a_file_outside_of_the_bundle_is_refused_whoever_approved_it(bench: Bench) -> None:
    """Triton would read it, and give its lines to whoever asks for a classification."""
    config = b'backend: "onnxruntime" output { name: "O" label_filename: "../../../etc/passwd" }'
    files = {"busbar.yaml": MANIFEST, "config.pbtxt": config, "1/model.onnx": b"\x08"}
    digest = await bench.put(make(files))

    with pytest.raises(Rejected, match=r"label_filename '\.\./\.\./\.\./etc/passwd' is not"):
        await bench.cache().fetch(digest)


async def test_data_needs_only_a_publishers_word(bench: Bench) -> None:
    made = model({"1/model.onnx": b"\x08"}, "onnxruntime")
    digest = await bench.put(made.sealed_by(PUBLISHER, approves_code=False))

    assert (await bench.cache().fetch(digest)).digest == digest


# --- room


async def three(bench: Bench) -> tuple[str, str, str]:
    one, two, three = [await bench.put(model({"1/weights.bin": weights()})) for _ in range(3)]
    return one, two, three


async def test_the_least_recently_used_bundle_goes_for_a_new_one(bench: Bench) -> None:
    first, second, third = await three(bench)
    cache = bench.cache(bytes_max=int(2.5 * WEIGHTS_BYTES))
    for digest in (first, second, first, third):
        await cache.fetch(digest)
    bench.store.taken()
    within = bench.size_bytes()

    await cache.fetch(first)
    kept = bench.store.taken()
    await cache.fetch(second)

    assert within <= 2.5 * WEIGHTS_BYTES
    assert (kept, bench.store.taken()) == (0, 10)


async def test_what_is_wanted_here_is_never_let_go(bench: Bench) -> None:
    first, second, third = await three(bench)
    cache = bench.cache(bytes_max=int(2.5 * WEIGHTS_BYTES))
    cache.pin({first, second, third})
    await cache.fetch(first)
    await cache.fetch(second)

    with pytest.raises(Unavailable, match=r"bundle cache is full: .* BUSBAR_BUNDLE_CACHE_MIB_MAX"):
        await cache.fetch(third)
    bench.store.taken()
    await cache.fetch(first)
    unmoved = bench.store.taken()
    cache.pin({first, third})
    await cache.fetch(third)

    assert unmoved == 0
    assert bench.store.taken() == 10
    assert bench.size_bytes() <= 2.5 * WEIGHTS_BYTES


async def test_a_bundle_larger_than_allowed_is_refused_before_a_byte_is_fetched(
    bench: Bench,
) -> None:
    cache = bench.cache()
    cache.bundle_bytes_max = WEIGHTS_BYTES

    with pytest.raises(Rejected, match=f"more than the {WEIGHTS_BYTES}"):
        await cache.fetch(await bench.put(model({"1/weights.bin": weights()})))

    assert bench.store.taken() == 0


_ON_A_SMALL_DISK = """
import subprocess, sys
from pathlib import Path
from busbar_contracts.scheduler.v1.bundle_pb2 import BundleChunk, BundleContents, BundledFile
from busbar_contracts.scheduler.v1.bundle_pb2 import SealedBundle
from busbar_errors import Unavailable
from busbar_node_agent.adapters.cache_disk import CacheDisk

MIB = 1024 * 1024
root = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", root], check=True)
disk = CacheDisk(root / "bundles", 2**40)

def take(name, mib, kept=()):
    chunks = [BundleChunk(sha256=bytes([ord(name)]) * 32, size_bytes=MIB)] * mib
    contents = BundleContents(files=[BundledFile(path="w", size_bytes=mib * MIB, chunks=chunks)])
    disk.note(name, SealedBundle(contents=contents.SerializeToString()))
    try:
        disk.reserve(name, contents, kept)
        return "fits"
    except Unavailable as error:
        return error.reason

print(take("a", 30))
print(take("b", 30))
print(sorted(path.name for path in (root / "bundles" / "bundles").iterdir()))
print(take("c", 30, {"b"}))
print(sorted(path.name for path in (root / "bundles" / "bundles").iterdir()))
"""


def test_on_a_full_disk_what_is_not_wanted_goes_and_what_does_not_fit_says_so(
    tmp_path: Path,
) -> None:
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c"]
    script = [*command, _ON_A_SMALL_DISK, str(tmp_path)]
    done = subprocess.run(script, check=False, capture_output=True, text=True, timeout=30)
    lines = done.stdout.splitlines()

    assert done.returncode == 0, done.stderr
    assert lines[:3] == ["fits", "fits", "['b']"]
    assert "the disk is full" in lines[3]
    assert "MiB free in" in lines[3]
    assert lines[4] == "['b']"
