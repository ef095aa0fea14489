"""What may be in a bundle's archive: plain files under plain names, once each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

COMPONENT_MAX_CHARS = 200
"""Triton 2.51 aborts on a path component above 255."""
MEMBERS_MAX = 4_096
MANIFEST_FILE, CONFIG_FILE = "busbar.yaml", "config.pbtxt"


class Kind(Enum):
    """What a member of the archive is."""

    FILE = "file"
    FOLDER = "folder"
    OTHER = "link, device or other special file"


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of the archive's table."""

    path: str
    kind: Kind
    size_bytes: int


class Contents:
    """The members seen so far; `admit` says why the next one is refused."""

    def __init__(self) -> None:
        self._files = set[str]()
        self._folders = set[str]()

    def admit(self, member: Member) -> str:
        """Take a member in, or return why it may not be there."""
        path = member.path.rstrip("/") if member.kind is Kind.FOLDER else member.path
        reason = self._objection(member, path)
        if not reason:
            (self._folders if member.kind is Kind.FOLDER else self._files).add(path)
            self._folders.update(_parents(path))
        return f"{_shown(member.path)}: {reason}" if reason else ""

    def _objection(self, member: Member, path: str) -> str:
        if member.kind is Kind.OTHER:
            return f"is a {Kind.OTHER.value}; only files and folders may be in a bundle"
        if len(self._files) + len(self._folders) >= MEMBERS_MAX:
            return f"is one more than the {MEMBERS_MAX} members a bundle may have"
        if reason := _bad_path(path):
            return reason
        if path in self._files or (member.kind is Kind.FILE and path in self._folders):
            return "is there twice"
        if any(parent in self._files for parent in _parents(path)):
            return "lies under something that is a file"
        return ""

    def missing(self) -> str:
        """What a complete bundle still lacks; empty when nothing."""
        for needed in (MANIFEST_FILE, CONFIG_FILE):
            if needed not in self._files:
                return f"{needed} is missing at the top of the archive"
        if not any(_version_of(path) for path in self._files):
            return "there is no model: a file in a folder named by its version, such as 1/"
        return ""


def _bad_path(path: str) -> str:
    if not path or path.startswith("/") or "\\" in path:
        return "is not a relative path"
    parts = path.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return "is not a plain path: no empty, . or .. parts"
    if any(len(part) > COMPONENT_MAX_CHARS for part in parts):
        return f"has a part longer than {COMPONENT_MAX_CHARS} characters"
    if not path.isprintable() or not path.isascii():
        return "has characters other than printable ASCII"
    return ""


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _version_of(path: str) -> bool:
    first, _, rest = path.partition("/")
    return bool(rest) and first.isdecimal() and not first.startswith("0")


def _shown(path: str) -> str:
    return repr(path if len(path) <= COMPONENT_MAX_CHARS else path[:COMPONENT_MAX_CHARS] + "…")
