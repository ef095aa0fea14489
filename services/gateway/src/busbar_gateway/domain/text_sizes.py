"""How many tokens a text of a size is likely to have, by what was counted of others."""

from __future__ import annotations

_FADES = 0.95
SHORT_BYTES = 64
"""Of a shorter text most tokens may be what a model, or a chat's template, puts around it."""
_PER_BYTE_MOST = 1.0
"""No token is shorter than a byte."""


class TextSizes:
    """What is put around a text, by the short ones, and what a byte of it comes to, by the others.

    One rate for all of them would take what a template adds to "Hi" for what two bytes come to,
    and a long text for many times of what it can have.
    """

    __slots__ = ("_bytes", "_short", "_short_bytes", "_short_tokens", "_tokens")

    def __init__(self) -> None:
        self._bytes = self._tokens = 0.0
        self._short = self._short_bytes = self._short_tokens = 0.0

    def add(self, text_bytes: int, tokens: int) -> None:
        """Of a text of this size so many tokens were counted; the latest and the largest count
        most."""
        if text_bytes >= SHORT_BYTES:
            self._bytes = _FADES * self._bytes + text_bytes
            self._tokens = _FADES * self._tokens + tokens
        else:
            self._short = _FADES * self._short + 1.0
            self._short_bytes = _FADES * self._short_bytes + text_bytes
            self._short_tokens = _FADES * self._short_tokens + tokens

    def tokens(self, text_bytes: int, per_byte_least: float) -> float:
        """Of a text of this size, where a byte comes to that much at least."""
        per_byte = per_byte_least
        if self._tokens > per_byte * self._bytes:
            per_byte = min(_PER_BYTE_MOST, self._tokens / self._bytes)
        inside = per_byte * text_bytes
        if not self._short:
            return inside
        around = self._short_tokens - per_byte * self._short_bytes
        return inside + around / self._short if around > 0 else inside
