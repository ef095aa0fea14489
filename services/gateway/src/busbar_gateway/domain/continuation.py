"""How far a generated answer has come, and where another attempt goes on from there.

An attempt that takes over reads the prompt with the text delivered so far behind it. Models
count tokens ahead of their text, by as much as may yet become a stop string; what an
attempt took over it counts as prompt, and from that the whole answer is counted as if one
attempt had made it.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field

_FINISH_REASONS = {"stop": "stop", "length": "length"}
_HALF_OF_INT64 = 2**62


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")


@dataclass(slots=True)
class Continuation:
    """One answer over all of its attempts."""

    tokens_max: int = 0
    """The most that may be generated; 0 where the model decides."""
    stops: tuple[str, ...] = ()
    input_tokens: int = 0
    """Of the prompt as the customer sent it."""
    output_tokens: int = 0
    cached_tokens: int = 0
    """Those of the prompt that the first attempt found in a cache: what a later one finds there
    may be our own doing."""
    finish_reason: str | None = None
    _parts: list[str] = field(default_factory=list[str])
    _resumed: bool = False
    _before: int = 0
    """Tokens that were counted before the present attempt."""
    _asked: int = 0
    """Most tokens that the present attempt may make."""
    _made: int = 0
    """Tokens that the present attempt has counted."""
    _rest: bool = False
    """Whether the present attempt only makes up for tokens that were counted ahead."""
    _held: str = ""
    """What such an attempt may yet complete to a stop string."""
    _bytes: codecs.IncrementalDecoder = field(default_factory=_decoder)

    def count(
        self, input_tokens: int, output_tokens: int, cached_tokens: int = 0
    ) -> tuple[int, int]:
        """The whole answer's tokens, from what the present attempt has counted."""
        if self._rest and self.finish_reason == "stop":
            return self.input_tokens, self.output_tokens
        self._made = output_tokens
        if not self._resumed:
            self.input_tokens, self.output_tokens = input_tokens, output_tokens
            self.cached_tokens = min(cached_tokens, input_tokens)
            return input_tokens, output_tokens
        total = self._before + output_tokens
        if self.input_tokens and input_tokens:
            taken_over = max(0, input_tokens - self.input_tokens)
            total = min(total, taken_over + output_tokens)
        self.output_tokens = min(total, self.tokens_max) if self.tokens_max else total
        return self.input_tokens, self.output_tokens

    def take(self, text: bytes, reason: str) -> str:
        """The next text to deliver, never half a character; count its tokens before."""
        finished = _FINISH_REASONS.get(reason)
        self.finish_reason = finished or self.finish_reason
        piece = self._bytes.decode(text)
        if self._rest or (finished and self.falls_short):
            piece = self._keep_what_may_stop(piece, ended=finished is not None)
        self._parts.append(piece)
        return piece

    def end(self) -> str:
        """What is left to deliver when all attempts are over."""
        self.finish_reason = self.finish_reason or "stop"
        held, self._held = self._held, ""
        return held + self._bytes.decode(b"", final=True)

    @property
    def complete(self) -> bool:
        """Whether all of the answer is there, although its last attempt may not have ended."""
        return self.finish_reason is not None and not self.falls_short

    @property
    def falls_short(self) -> bool:
        """Whether the attempt ended at a limit that was set too low by what was counted ahead."""
        return (
            self._resumed
            and self.finish_reason == "length"
            and self._made >= self._asked
            and self.output_tokens < self.tokens_max
        )

    def resume(self) -> tuple[str, int]:
        """Begin another attempt: the text it takes over, and how much it may make (0: no limit)."""
        self._rest = self._rest or self.falls_short
        self._resumed, self.finish_reason = True, None
        self._before, self._made = self.output_tokens, 0
        self._bytes.reset()
        self._asked = max(1, self.tokens_max - self._before) if self.tokens_max else 0
        return "".join(self._parts) + self._held, self._asked

    def seed_from(self, seed: int) -> int:
        """Another attempt's seed, so that it does not draw the same numbers once more."""
        return seed + self._before if seed < _HALF_OF_INT64 else seed - self._before

    def _keep_what_may_stop(self, piece: str, *, ended: bool) -> str:
        piece, self._held = self._held + piece, ""
        if ended and not self.falls_short:
            found = [at for stop in self.stops if (at := piece.find(stop)) >= 0]
            if found:  # nobody knows how many tokens that took: what was counted before stands
                self.finish_reason, self.output_tokens = "stop", self._before
            return piece[: min(found, default=len(piece))]
        keep = max(map(len, self.stops), default=1) - 1
        cut = 0 if self._rest else max(0, len(piece) - keep)
        self._held = piece[cut:]
        return piece[:cut]
