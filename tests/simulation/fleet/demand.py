"""What customers send: bursts, heavy tails and the hours of a day.

Arrivals are Gamma renewal processes, as Wang et al. found them ("BurstGPT", 2024,
arXiv:2401.17644). Lengths and burstiness are those of the Azure LLM inference traces of 2023
(Patel et al., "Splitwise", ISCA'24): medians and 99th percentiles of prompts and answers, each
as a lognormal distribution; a third kind of customer has BurstGPT's Zipf lengths.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from random import Random

_P99 = 2.326
"""Standard deviations from the median of a normal distribution to its 99th percentile."""
_DAY_S = 86_400.0
_ZIPF_EXPONENT, _ZIPF_RANKS, _ZIPF_TOKENS = 1.2, 64, 16
"""Answers of 16, 32, ... 1,024 tokens, the k-th k^-1.2 times as often as the first."""
_GAP_MIN = 1e-6


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of prompts and answers: median and 99th percentile of each, in the trace."""

    prompt_median: int
    prompt_p99: int
    answer_median: int
    answer_p99: int
    gaps_cv: float
    """Coefficient of variation of the gaps between arrivals; 1 is a Poisson process."""
    zipf: bool = False
    """Whether answers have Zipf's lengths instead."""


CODE = Lengths(1_469, 7_436, 13, 252, gaps_cv=13.2)
CONVERSATION = Lengths(1_020, 4_142, 129, 601, gaps_cv=1.09)
CHATTER = Lengths(1_020, 4_142, 0, 0, gaps_cv=2.0, zipf=True)
KINDS = {"code": CODE, "conversation": CONVERSATION, "chatter": CHATTER}


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast one slot of a model works on a node that is well."""

    prompt_tokens_per_s: float
    answer_tokens_per_s: float

    def prompt_s(self, tokens: int) -> float:
        """Until the first token of an answer."""
        return 0.1 + tokens / self.prompt_tokens_per_s

    def answer_s(self, tokens: int) -> float:
        """From the first token to the last."""
        return tokens / self.answer_tokens_per_s


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it arrives."""

    at_s: float
    region: str
    prompt_tokens: int
    answer_tokens: int
    streamed: bool


@dataclass(frozen=True, slots=True)
class Asking:
    """One customer of one model: how much it asks, when and where."""

    tenant: str
    deployment: str
    kind: str
    requests_per_s: float
    """On the average of a day."""
    peak_h: float
    """The hour of the day at which it asks most."""
    swing: float
    """From 0, the same at all hours, to 1, nothing at all half a day off the peak."""
    regions: tuple[str, ...]
    """Where it asks, the first most often."""
    answer_tokens_max: int
    day_s: float = _DAY_S
    """How long a day lasts; less than in life where a simulation is to be short."""

    def rate_at(self, at_s: float) -> float:
        """Requests per second expected at a moment."""
        phase = 2 * math.pi * (at_s / self.day_s - self.peak_h / 24)
        return self.requests_per_s * (1 + self.swing * math.cos(phase))

    def slot_s(self, speed: Speed) -> float:
        """How long a typical request of it takes a slot."""
        lengths = KINDS[self.kind]
        answer = 4 * _ZIPF_TOKENS if lengths.zipf else 1.3 * lengths.answer_median
        return speed.prompt_s(lengths.prompt_median) + speed.answer_s(round(answer))

    def requests(self, random: Random, until_s: float) -> Iterator[Asked]:
        """Everything it asks, in the order of time; the same for the same random numbers."""
        lengths = KINDS[self.kind]
        shape = 1 / lengths.gaps_cv**2
        at_s, floor = 0.0, self.requests_per_s / 100
        while True:
            rate = max(floor, self.rate_at(at_s))
            at_s += max(_GAP_MIN, random.gammavariate(shape, 1 / shape)) / rate
            if at_s >= until_s:
                return
            home = random.random() < 0.8  # most of a customer is in one place
            yield Asked(
                at_s,
                self.regions[0] if home else random.choice(self.regions),
                _tokens(random, lengths.prompt_median, lengths.prompt_p99, 8 * lengths.prompt_p99),
                self._answer(random, lengths),
                streamed=random.random() < 0.5,  # half of them
            )

    def _answer(self, random: Random, lengths: Lengths) -> int:
        if lengths.zipf:
            rank = bisect_left(_ZIPF_SHARES, random.random() * _ZIPF_SHARES[-1])
            return min((rank + 1) * _ZIPF_TOKENS, self.answer_tokens_max)
        return _tokens(random, lengths.answer_median, lengths.answer_p99, self.answer_tokens_max)


_ZIPF_SHARES = list(accumulate(rank**-_ZIPF_EXPONENT for rank in range(1, _ZIPF_RANKS + 1)))


def _tokens(random: Random, median: int, p99: int, most: int) -> int:
    drawn = random.lognormvariate(math.log(median), math.log(p99 / median) / _P99)
    return max(1, min(most, round(drawn)))
