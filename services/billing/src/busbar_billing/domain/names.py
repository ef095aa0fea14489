"""What people may call things, and what their references may look like."""

from __future__ import annotations

import re
import unicodedata

from busbar_errors import Rejected

NAME_MAX = 100
REFERENCE_MAX = 200
SUSPENSION_MAX = 200
PROJECTS_PER_TENANT_MAX = 1_000
DEPLOYMENTS_MAX = 1_000

_TENANT_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_DEPLOYMENT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_PROJECT_ID = re.compile(r"prj_[0-9a-f]{32}")
_PLAN_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that hide or reorder text: control, format (bidi marks), surrogates, …"""
_INVISIBLE = re.compile(
    "[\N{COMBINING GRAPHEME JOINER}\N{HANGUL CHOSEONG FILLER}\N{HANGUL JUNGSEONG FILLER}"
    "\N{KHMER VOWEL INHERENT AQ}\N{KHMER VOWEL INHERENT AA}\N{BRAILLE PATTERN BLANK}"
    "\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
"""What shows nothing of itself, beside the categories above; the ranges select variants."""
_LETTERS_AND_DIGITS = ("L", "Nd", "Nl")
_APART = frozenset({"LATIN", "GREEK", "COPTIC", "CYRILLIC", "ARMENIAN", "CHEROKEE", "LISU"})
"""Scripts with letters in common by sight, so that no word needs two of them; by the first word of
their letters' names."""
LOOKALIKES = ("авгеёзкмнорстухіїјѕһӏԁԛԝαβεζηικμνορτυχϲ", "abreë3kmhopctyxiïjshldqwabezhikmnoptyxc")
"""Letters that look like Latin ones in small letters or in capitals, and those, one by one."""


def checked_text(field: str, text: str, longest: int) -> str:
    """Return `text` in Unicode's composed form (NFC), without surrounding blanks, so that what
    looks alike is alike; raise Rejected when it cannot be shown safely."""
    stripped = unicodedata.normalize("NFC", text).strip()
    if not stripped:
        raise Rejected(f"{field} is empty")
    if len(stripped) > longest:
        raise Rejected(f"{field} is longer than {longest} characters")
    for character in stripped:
        if unicodedata.category(character) in _UNPRINTABLE:
            raise Rejected(f"{field} holds an unprintable character, U+{ord(character):04X}")
    return stripped


def checked_name(text: str) -> str:
    """A tenant's or key's name, with one blank between words, and letters and digits without
    their variants: wide, bold, joined. Raise Rejected when it shows less than it holds, or when a
    word mixes alphabets (after UTS 39, section 5.2)."""
    plain = "".join(map(_without_variants, checked_text("name", text, NAME_MAX)))
    name = checked_text("name", " ".join(plain.split()), NAME_MAX)
    if hidden := _INVISIBLE.search(name):
        raise Rejected(f"name holds an invisible character, U+{ord(hidden[0]):04X}")
    for word in re.findall(r"\w+", name):
        if len(scripts := sorted(_APART.intersection(map(_script, word)))) > 1:
            raise Rejected(
                f"{word!r} in name mixes {' and '.join(scripts)} letters, which look alike:"
                " write each word in one alphabet"
            )
    return name


def _without_variants(character: str) -> str:
    if unicodedata.category(character).startswith(_LETTERS_AND_DIGITS):
        return unicodedata.normalize("NFKC", character)
    return character


def _script(letter: str) -> str:
    return unicodedata.name(letter, "").partition(" ")[0]


def checked_reference(text: str) -> str:
    """What identifies a payment."""
    return checked_text("reference", text, REFERENCE_MAX)


def checked_tenant_id(text: str) -> str:
    """A tenant id; raise Rejected when it is not one."""
    if not _TENANT_ID.fullmatch(text):
        raise Rejected(f"tenant_id must match {_TENANT_ID.pattern}")
    return text


def is_tenant_id(text: str) -> bool:
    """Whether a tenant could be called this at all."""
    return _TENANT_ID.fullmatch(text) is not None


def checked_plan_id(text: str) -> str:
    """A plan's id; raise Rejected when it is not one."""
    if not is_plan_id(text):
        raise Rejected(f"plan_id must match {_PLAN_ID.pattern}")
    return text


def is_plan_id(text: str) -> bool:
    """Whether a plan could be called this at all."""
    return _PLAN_ID.fullmatch(text) is not None


def is_project_id(text: str) -> bool:
    """Whether a project could have this id at all."""
    return _PROJECT_ID.fullmatch(text) is not None


def checked_suspension(text: str) -> str:
    """Why a tenant is suspended, as its users will read it."""
    return checked_text("reason", text, SUSPENSION_MAX)


def checked_deployments(names: list[str]) -> list[str]:
    """A key's allow-list, sorted and without repeats; raise Rejected when one cannot be a name."""
    if len(names) > DEPLOYMENTS_MAX:
        raise Rejected(f"a key allows at most {DEPLOYMENTS_MAX} deployments by name")
    for name in names:
        if not _DEPLOYMENT.fullmatch(name):
            raise Rejected(f"{name[:80]!r} is not a deployment: use {_DEPLOYMENT.pattern}")
    return sorted(set(names))
