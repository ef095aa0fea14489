"""What a request is likely to cost before it runs: what is known of it already, at the prices that
hold now, and for the rest what requests like it took.

Amounts called exact are nanos over prices.SCALE, as rates are.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

from busbar_gateway.domain.prices import FREE, Rates
from busbar_gateway.domain.routes import Manifest
from busbar_gateway.domain.text_sizes import TextSizes

_HISTORY = 32
_PERCENTILE = 0.95
_TOKENS_PER_BYTE = 0.25
"""Of a text, as long as the model has not counted more."""
_MARKS = 4
"""Tokens that a model may put before and after a text."""
_GUESSED_OUTPUT_TOKENS = 256
_GUESSED_COMPUTE_US = 100_000
_GUESSED_RESPONSE_BYTES = 4096
VAIN_HALVES_S = 300.0
"""What was worked and could not be paid for is expected again, every so long half of it."""


class WorkHistory:
    """Recent work for one tenant's requests to one deployment.

    Kept in units, so that a new price holds for what was learned under the old one.
    """

    __slots__ = (
        "_beyond",
        "_likely_rest",
        "_ordered",
        "_rates",
        "_recent",
        "_vain_at",
        "texts",
        "vain_nanos",
    )

    def __init__(self) -> None:
        self._recent: deque[tuple[int, int, int, int]] = deque()
        """Exact cost of what was not known before: output tokens, response bytes, compute."""
        self._ordered: list[int] = []
        self._rates = FREE
        self._likely_rest = 0
        self._vain_at = 0.0
        self._beyond = 0
        """How often to double what a request costs at most to have what one in vain came to."""
        self.vain_nanos = 0
        """What was worked and could not be paid for, when it was; 0 when all of it was."""
        self.texts = TextSizes()

    def add(
        self,
        text_bytes: int,
        input_tokens: int,
        output_tokens: int,
        response_bytes: int,
        compute_us: int,
    ) -> None:
        """Remember what a request took, of which so much was text that the model reads; the oldest
        is forgotten."""
        self.texts.add(text_bytes, input_tokens)
        rest = _rest(self._rates, output_tokens, response_bytes, compute_us)
        recent, ordered = self._recent, self._ordered
        recent.append((rest, output_tokens, response_bytes, compute_us))
        if len(recent) > _HISTORY:
            oldest = recent.popleft()[0]
            if oldest == rest:  # most requests take what others did
                return
            del ordered[bisect_left(ordered, oldest)]
        insort(ordered, rest)
        self._likely_rest = ordered[_rank(len(ordered))]

    def worked_in_vain(self, nanos: int, now: float, most: int | None = None) -> None:
        """A request was worked that came to `nanos`, for which the money was not there; it was to
        cost `most` at most."""
        vain_nanos = max(nanos, self.at_least(now))
        beyond = max(0, self._beyond - self._halvings(now))
        while most and most << beyond < nanos:
            beyond += 1
        self.vain_nanos, self._beyond, self._vain_at = vain_nanos, beyond, now

    def paid(self, claimed_nanos: int, now: float) -> None:
        """A request was paid for. One that claimed less, before there was one in vain, shows
        nothing of what such a request comes to."""
        if self.vain_nanos and claimed_nanos >= self.at_least(now):
            self.vain_nanos //= 2

    def at_least(self, now: float, most: int | None = None) -> int:
        """What the next request must claim, so that the same is not worked for nothing again. Of
        one that costs `most` at most no more than that, unless such a one came to more."""
        if not self.vain_nanos:
            return 0
        halvings = self._halvings(now)
        raised = self.vain_nanos >> halvings
        return raised if most is None else min(raised, most << max(0, self._beyond - halvings))

    def _halvings(self, now: float) -> int:
        return int((now - self._vain_at) / VAIN_HALVES_S)

    def likely_rest(self, rates: Rates) -> int:
        """The 95th percentile of what cannot be known before a request runs, exact."""
        if rates is not self._rates:
            self._reprice(rates)
        return self._likely_rest

    def _reprice(self, rates: Rates) -> None:
        old, self._rates = self._rates, rates
        if rates == old:
            return
        work = [one[1:] for one in self._recent]
        self._recent = deque((_rest(rates, *one), *one) for one in work)
        self._ordered = sorted(one[0] for one in self._recent)
        self._likely_rest = self._ordered[_rank(len(self._ordered))] if self._ordered else 0


def likely_nanos(
    manifest: Manifest,
    request_bytes: int,
    output_tokens_max: int,
    rates: Rates,
    past: WorkHistory | None,
    *,
    text_bytes: int = 0,
) -> int:
    """What a request likely costs: never less than its input does, as far as it can be told, and
    never more than the request can. `text_bytes` of it are what the model reads; 0 means that all
    of it may be."""
    input_tokens = _input_tokens(manifest, text_bytes or request_bytes, past)
    if past is None:
        rest = _guessed_rest(manifest, request_bytes, rates)
    else:
        rest = past.likely_rest(rates)
    exact = rates.request + input_tokens * rates.input_token + request_bytes * rates.byte + rest
    if manifest.task == "chat" and not rates.by_size:
        output_tokens = output_tokens_max or manifest.max_output_tokens
        output = output_tokens * rates.output_token
        if output_tokens and rest > output:
            # No token is shorter than a byte; what is put around a short text may be longer.
            longest = max(input_tokens, text_bytes + _MARKS if text_bytes else request_bytes)
            if manifest.max_input_tokens:
                longest = min(longest, manifest.max_input_tokens)
            exact = min(exact, rates.request + longest * rates.input_token + output)
    return rates.charged_nanos(exact)


def least_nanos(
    manifest: Manifest,
    request_bytes: int,
    rates: Rates,
    past: WorkHistory | None,
    *,
    text_bytes: int = 0,
) -> int:
    """What a request costs even if it makes nothing, and never nothing: who has that and less than
    is likely can spend it all the same."""
    least = _least_exact(manifest, request_bytes, rates, past, text_bytes)
    return max(1, rates.charged_nanos(least))


def most_nanos(
    manifest: Manifest,
    request_bytes: int,
    output_tokens_max: int,
    rates: Rates,
    past: WorkHistory | None,
    *,
    text_bytes: int = 0,
) -> int | None:
    """What a request costs at most, as far as its input can be told; None where nothing that is
    known bounds it."""
    counted = rates.input_token or rates.output_token
    if rates.by_size or (manifest.task == "tensor" and counted):
        return None
    output_tokens = 0
    if manifest.task == "chat":
        output_tokens = output_tokens_max or manifest.max_output_tokens
        if not output_tokens and rates.output_token:
            return None
    least = _least_exact(manifest, request_bytes, rates, past, text_bytes)
    return max(1, rates.charged_nanos(least + output_tokens * rates.output_token))


def _least_exact(
    manifest: Manifest, request_bytes: int, rates: Rates, past: WorkHistory | None, text_bytes: int
) -> int:
    input_tokens = _input_tokens(manifest, text_bytes or request_bytes, past)
    return rates.request + input_tokens * rates.input_token + request_bytes * rates.byte


def _input_tokens(manifest: Manifest, text_bytes: int, past: WorkHistory | None) -> int:
    """Tokens of the request, as far as it can be told."""
    per_byte = 0.0 if manifest.task == "tensor" else _TOKENS_PER_BYTE
    known = text_bytes * per_byte if past is None else past.texts.tokens(text_bytes, per_byte)
    input_tokens, longest = int(known + 0.5), manifest.max_input_tokens
    return longest if 0 < longest < input_tokens else input_tokens


def _guessed_rest(manifest: Manifest, request_bytes: int, rates: Rates) -> int:
    """Before anything is known of a tenant's requests: by what the model can do."""
    output_tokens = 0
    if manifest.task == "chat":
        most = manifest.max_output_tokens or _GUESSED_OUTPUT_TOKENS
        output_tokens = min(most, _GUESSED_OUTPUT_TOKENS)
    response_bytes = request_bytes + _GUESSED_RESPONSE_BYTES
    return _rest(rates, output_tokens, response_bytes, _GUESSED_COMPUTE_US)


def _rest(rates: Rates, output_tokens: int, response_bytes: int, compute_us: int) -> int:
    return (
        output_tokens * rates.output_token
        + response_bytes * rates.byte
        + compute_us * rates.compute_us
    )


def _rank(count: int) -> int:
    return int(_PERCENTILE * (count - 1) + 0.5)
