"""What a model bundle's archive may contain, and how its config.pbtxt names the model.

A component of more than 255 characters under `file:` kills Triton 2.51, links and
absolute or climbing paths reach outside of the model's directory; none of it is let in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

COMPONENT_CHARS_MAX = 200
MEMBERS_MAX = 10_000
DEPTH_MAX = 16

_DIGEST = re.compile(r"^sha256:([0-9a-f]{64})$")
_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|#[^\n]*|[{}\[\]<>]|[A-Za-z_]\w*')
_NAME_VALUE = re.compile(r'\s*:\s*("(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\')')


class BundleRefused(ValueError):
    """The bundle is not one; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Member:
    """An entry of the archive."""

    name: str
    size_bytes: int
    is_file: bool
    is_dir: bool


def digest_hex(digest: str) -> str:
    """The 64 hex digits of "sha256:…"."""
    match = _DIGEST.match(digest)
    if match is None:
        raise BundleRefused(f"{digest!r} is not sha256: and 64 hex digits")
    return match.group(1)


def check_members(members: Iterable[Member], *, bytes_max: int) -> None:
    """Raise BundleRefused unless all may be extracted."""
    seen: set[str] = set()
    total_bytes = 0
    for member in members:
        path = checked_path(member.name)
        if not (member.is_file or member.is_dir):
            raise BundleRefused(f"{member.name!r} is neither a file nor a directory")
        if path in seen and member.is_file:
            raise BundleRefused(f"{member.name!r} is in the archive twice")
        seen.add(path)
        total_bytes += member.size_bytes
        if len(seen) > MEMBERS_MAX:
            raise BundleRefused(f"more than {MEMBERS_MAX} entries")
        if total_bytes > bytes_max:
            raise BundleRefused(f"more than {bytes_max} bytes when extracted")
    for needed in ("config.pbtxt", "busbar.yaml"):
        if needed not in seen:
            raise BundleRefused(f"{needed} is missing")


def checked_path(name: str) -> str:
    """The entry's path, relative and normalized; raises BundleRefused for one that is neither."""
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise BundleRefused(f"{name!r} leads out of the bundle")
    if len(parts) > DEPTH_MAX or any(len(part) > COMPONENT_CHARS_MAX for part in parts):
        raise BundleRefused(
            f"{name[:80]!r}… is deeper than {DEPTH_MAX} or has a component "
            f"of more than {COMPONENT_CHARS_MAX} characters"
        )
    return "/".join(parts)


def named_config(text: str, name: str) -> str:
    """`text` of a config.pbtxt with its top-level `name` set to `name`.

    Triton loads a model only when it is named like its directory, which is
    named like the deployment; one bundle may serve under several names.
    """
    depth = 0
    for token in _TOKEN.finditer(text):
        word = token.group()
        if word in {"{", "[", "<"}:
            depth += 1
        elif word in {"}", "]", ">"}:
            depth -= 1
        elif word == "name" and depth == 0:
            value = _NAME_VALUE.match(text, token.end())
            if value is not None:
                return f'{text[: value.start(1)]}"{name}"{text[value.end(1) :]}'
    return f'name: "{name}"\n{text}'
