"""Tokens of an attempt, counted from the model's own outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class TokenCount:
    """Running count over the responses of one attempt.

    Every response names all prompt tokens, and all of them that were in a cache, but
    only its own generated tokens, as the vLLM backend does it.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0

    def add(
        self, prompt: Sequence[int], generated: Sequence[int], cached: Sequence[int] = ()
    ) -> None:
        """Count one response; a model that reports a negative number reports nothing."""
        self.input_tokens = max(self.input_tokens, _sum(prompt))
        self.output_tokens += _sum(generated)
        self.cached_tokens = max(self.cached_tokens, _sum(cached))


def _sum(counts: Sequence[int]) -> int:
    return sum(count for count in counts if count > 0)
