"""One answer, token by token: sampling, stop strings, whole characters, and why it ended.

Knows nothing of Triton, so the build uses it too, to compute what the warm-up must answer.
"""

import codecs
import math
from dataclasses import dataclass

import numpy as np
from engine import CONTEXT, END, PREFILL_CHUNK

MAX_STOPS = 16


class Refused(Exception):
    """The request can never succeed as it is; the message says why."""


@dataclass(frozen=True)
class Sampling:
    """vLLM's names, meanings and defaults."""

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    @classmethod
    def of(cls, given) -> "Sampling":
        """From parsed JSON; Refused names the first thing wrong."""
        if not isinstance(given, dict):
            raise Refused("sampling_parameters must be a JSON object")
        known = cls.__dataclass_fields__
        unknown = sorted(given.keys() - known)
        if unknown:
            raise Refused(f"unknown sampling parameter {unknown[0]!r}; known: {', '.join(known)}")
        read = {"max_tokens": _int, "min_tokens": _int, "seed": _int, "stop": _stops}
        read |= {"temperature": _float, "top_p": _float, "ignore_eos": _bool}
        present = {name: value for name, value in given.items() if value is not None}
        sampling = cls(**{name: read[name](name, value) for name, value in present.items()})
        sampling._check()
        return sampling

    def _check(self) -> None:
        if self.max_tokens < 1:
            raise Refused(f"max_tokens is {self.max_tokens}, must be at least 1")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise Refused(f"min_tokens is {self.min_tokens}, must be 0 to max_tokens")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise Refused(f"temperature is {self.temperature}, must be at least 0")
        if not 0 < self.top_p <= 1:
            raise Refused(f"top_p is {self.top_p}, must be above 0 and at most 1")


class Generation:
    """Call `step` until it gives a reason."""

    def __init__(self, engine, prompt: str, sampling: Sampling) -> None:
        self._engine = engine
        self._sampling = sampling
        self._sequence = engine.start()
        self._waiting = [END, *prompt.encode()]
        self._random = np.random.default_rng(_seed(sampling.seed))
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._produced = 0
        self._room = CONTEXT - len(prompt.encode())
        self.narrowest_margin = math.inf

    def step(self) -> tuple[str, int, str | None]:
        """New text, new tokens (0 while the prompt is read), and `stop`, `length` or None."""
        chunk, self._waiting = self._waiting[:PREFILL_CHUNK], self._waiting[PREFILL_CHUNK:]
        logits = self._engine.advance(self._sequence, chunk)
        if self._waiting:
            return "", 0, None
        token = self._choose(logits)
        self._produced += 1
        if token == END:
            return self._release(self._decoder.decode(b"", final=True), "stop")
        self._waiting = [token]
        last = self._produced == min(self._sampling.max_tokens, self._room)
        text = self._decoder.decode(bytes([token]), final=last)
        return self._release(text, "length" if last else None)

    def _release(self, text: str, reason: str | None) -> tuple[str, int, str | None]:
        """What may be shown: nothing from a stop string on, nor what may yet become one."""
        self._held += text
        if self._produced > self._sampling.min_tokens:
            found = [at for stop in self._sampling.stop if (at := self._held.find(stop)) >= 0]
            if found:
                return self._held[: min(found)], 1, "stop"
        cut = len(self._held) if reason else _safe(self._held, self._sampling.stop)
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, 1, reason

    def _choose(self, logits: np.ndarray) -> int:
        if self._sampling.ignore_eos or self._produced < self._sampling.min_tokens:
            logits = logits.copy()
            logits[END] = -np.inf
        if self._sampling.temperature == 0:
            first, second = np.partition(logits, -2)[[-1, -2]]
            self.narrowest_margin = min(self.narrowest_margin, float(first - second))
            return int(np.argmax(logits))
        scaled = logits.astype(np.float64) / self._sampling.temperature
        chances = np.exp(scaled - scaled.max())
        chances /= chances.sum()
        order = np.argsort(-chances, kind="stable")
        reached = np.cumsum(chances[order])
        kept = order[: int(np.searchsorted(reached, self._sampling.top_p)) + 1]
        return int(self._random.choice(kept, p=chances[kept] / chances[kept].sum()))


def _safe(text: str, stops: tuple[str, ...]) -> int:
    """How much of a text no stop string can begin in that goes on behind it."""
    longest = max(map(len, stops), default=1) - 1
    for at in range(max(0, len(text) - longest), len(text)):
        if any(stop.startswith(text[at:]) for stop in stops):
            return at
    return len(text)


def _int(name: str, value) -> int:
    number = _number(name, value)
    if number != int(number):
        raise Refused(f"{name} is {value!r}, must be a whole number")
    return int(number)


def _float(name: str, value) -> float:
    return float(_number(name, value))


def _number(name: str, value) -> int | float:
    """Numbers, or numbers written as text: the vLLM backend converts them too."""
    if isinstance(value, str):
        try:
            value = float(value) if not value.lstrip("-").isdigit() else int(value)
        except ValueError:
            raise Refused(f"{name} is {value!r}, must be a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Refused(f"{name} is {value!r}, must be a number")
    return value


def _bool(name: str, value) -> bool:
    if not isinstance(value, bool):
        raise Refused(f"{name} is {value!r}, must be true or false")
    return value


def _stops(name: str, value) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise Refused(f"{name} must be a non-empty string or a list of them")
    if len(stops) > MAX_STOPS:
        raise Refused(f"{name} has {len(stops)} strings, at most {MAX_STOPS} are allowed")
    return tuple(stops)


def _seed(seed: int | None) -> int | None:
    return None if seed is None else seed % (1 << 64)
