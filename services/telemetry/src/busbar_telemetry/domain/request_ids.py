"""The public form of request ids: "req_" and the 32 hex digits of a UUIDv7."""

from __future__ import annotations

import re

_HEX = re.compile(r"[0-9a-f]{32}")


def canonical(text: str) -> str:
    """The public form of `text` if it is a request id in any usual form, else `text` itself."""
    digits = text.strip().lower().removeprefix("req_").replace("-", "")
    return f"req_{digits}" if _HEX.fullmatch(digits) else text
