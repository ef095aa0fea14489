"""What a bundle may consist of: plain files under plain names, once each, in bounded pieces."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

from busbar_contracts.scheduler.v1.bundle_pb2 import BundleContents, BundledFile
from busbar_errors import Rejected
from google.protobuf.message import DecodeError

from busbar_messaging.topology import NAME_PATTERN

MANIFEST_FILE, CONFIG_FILE = "busbar.yaml", "config.pbtxt"
CHUNK_BYTES_MAX = 4 * 1024 * 1024
"""A chunk is one message; `max_payload` is twice that."""
CONTENTS_BYTES_MAX = 640 * 1024
"""Room for some 15,000 chunks; as base64 it stays within an admin API's body."""
FILES_MAX = 4_096
COMPONENT_CHARS_MAX = 200
"""Triton 2.51 aborts on a path component above 255."""
DEPTH_MAX = 16

_SHA256_BYTES = 32
_VERSION_CHARS_MAX = 64
_NAME = re.compile(NAME_PATTERN)
_DIGEST = re.compile(r"^sha256:([0-9a-f]{64})$")


def digest_of(contents: bytes) -> str:
    """The digest of a bundle with these serialized contents: "sha256:" and 64 hex digits."""
    return f"sha256:{hashlib.sha256(contents).hexdigest()}"


def hex_of(digest: str) -> str:
    """The 64 hex digits of a digest; raises Rejected when it is none."""
    match = _DIGEST.match(digest)
    if match is None:
        raise Rejected(f"{digest[:100]!r} is not sha256: and 64 hex digits")
    return match.group(1)


def chunk_object(sha256: bytes) -> str:
    """What a chunk is called in the object store."""
    return f"chunk-{sha256.hex()}"


def bundle_object(digest: str) -> str:
    """What a bundle's contents and seals are called there; raises Rejected when it is none."""
    return f"bundle-{hex_of(digest)}"


def object_names(digest: str, contents: BundleContents) -> frozenset[str]:
    """Everything that a bundle consists of in the object store."""
    chunks = {chunk_object(one.sha256) for file in contents.files for one in file.chunks}
    return frozenset(chunks | {bundle_object(digest)})


def read_contents(serialized: bytes, bundle_bytes_max: int) -> BundleContents:
    """The contents, when such a bundle may be; raises Rejected with the first thing wrong."""
    if len(serialized) > CONTENTS_BYTES_MAX:
        raise Rejected(f"the bundle's contents take more than {CONTENTS_BYTES_MAX} bytes to list")
    try:
        contents = BundleContents.FromString(serialized)
    except DecodeError as error:
        raise Rejected(f"the bundle's contents cannot be read: {error}") from error
    for reason in _objections(contents, bundle_bytes_max):
        raise Rejected(reason)
    return contents


def size_of(contents: BundleContents) -> int:
    """Bytes of all files together."""
    return sum(file.size_bytes for file in contents.files)


def _objections(contents: BundleContents, bundle_bytes_max: int) -> Iterator[str]:
    if not _NAME.match(contents.name):
        yield f"{_shown(contents.name)} is not a bundle's name: use {NAME_PATTERN}"
    if not 0 < len(contents.version) <= _VERSION_CHARS_MAX:
        yield f"a version has 1 to {_VERSION_CHARS_MAX} characters"
    if len(contents.files) > FILES_MAX:
        yield f"{len(contents.files)} files are more than the {FILES_MAX} that a bundle may have"
    yield from _file_objections(contents)
    if (size_bytes := size_of(contents)) > bundle_bytes_max:
        yield f"{size_bytes} bytes are more than the {bundle_bytes_max} that a bundle may have"
    yield from _lacks({file.path for file in contents.files})


def _file_objections(contents: BundleContents) -> Iterator[str]:
    files, folders, before = set[str](), set[str](), ""
    for file in contents.files:
        reason = _bad_path(file.path) or _bad_chunks(file)
        above = _folders_above(file.path)
        if not reason and (file.path in files or file.path in folders):
            reason = "is there twice"
        if not reason and files.intersection(above):
            reason = "lies under something that is a file"
        if not reason and file.path < before:
            reason = "is not in the order of the paths"
        if reason:
            yield f"{_shown(file.path)}: {reason}"
        files.add(file.path)
        folders.update(above)
        before = file.path


def _bad_path(path: str) -> str:
    if not path or path.startswith("/") or "\\" in path:
        return "is not a relative path"
    parts = path.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return "is not a plain path: no empty, . or .. parts"
    if len(parts) > DEPTH_MAX:
        return f"lies deeper than {DEPTH_MAX} folders"
    if any(len(part) > COMPONENT_CHARS_MAX for part in parts):
        return f"has a part longer than {COMPONENT_CHARS_MAX} characters"
    if not path.isprintable() or not path.isascii():
        return "has characters other than printable ASCII"
    return ""


def _bad_chunks(file: BundledFile) -> str:
    if any(len(chunk.sha256) != _SHA256_BYTES for chunk in file.chunks):
        return "has a chunk whose digest is not a SHA-256"
    if any(not 0 < chunk.size_bytes <= CHUNK_BYTES_MAX for chunk in file.chunks):
        return f"has a chunk that is empty or larger than {CHUNK_BYTES_MAX} bytes"
    if (listed := sum(chunk.size_bytes for chunk in file.chunks)) != file.size_bytes:
        return f"has {file.size_bytes} bytes, its chunks {listed}"
    return ""


def _lacks(paths: set[str]) -> Iterator[str]:
    for needed in (MANIFEST_FILE, CONFIG_FILE):
        if needed not in paths:
            yield f"{needed} is missing at the top of the bundle"
    if not any(_is_in_a_version(path) for path in paths):
        yield "there is no model: a file in a folder named by its version, such as 1/"


def _is_in_a_version(path: str) -> bool:
    first, _, rest = path.partition("/")
    return bool(rest) and first.isascii() and first.isdecimal() and not first.startswith("0")


def _folders_above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _shown(text: str) -> str:
    return repr(text if len(text) <= COMPONENT_CHARS_MAX else text[:COMPONENT_CHARS_MAX] + "…")
