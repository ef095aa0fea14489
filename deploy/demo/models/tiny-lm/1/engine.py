"""A byte-level transformer in numpy: one token is one byte, 256 ends a text.

Pre-norm blocks with rotary positions (Su et al. 2021), normalised queries and keys, attention to
the last WINDOW tokens only, and hashed embeddings of the last 2 to 4 bytes added to the input
(Pagnoni et al. 2024, "Byte Latent Transformer", section 3.2.1): they let a model this small
know words. At the end, memory of the text itself is mixed in. No request shares arithmetic with
another, so the same request always gets the same answer.
"""

from pathlib import Path

import numpy as np
from memory import LONGEST_MATCH, TEXT_END, Memory

END = 256
VOCABULARY = 257
GRAMS = 3
BUCKETS = 4096
WINDOW = 128
CONTEXT = 1024
PREFILL_CHUNK = 128
ROTARY_BASE = 10_000.0
ATTENTION_SCALE = 0.25
EPSILON = 1e-6
SMALLEST_CHANCE = 1e-9


def gram_ids(tokens: np.ndarray) -> np.ndarray:
    """Buckets [n, GRAMS] of the 2, 3, 4 tokens that end at each; END stands before a text."""
    hashed = tokens.astype(np.uint32)
    lagged = tokens
    ids = np.empty((len(tokens), GRAMS), dtype=np.int32)
    for lag in range(1, GRAMS + 1):
        shifted = np.concatenate([np.full(lag, END), tokens])[: len(tokens)]
        lagged = np.where(lagged == END, END, shifted)
        hashed = hashed * np.uint32(2654435761) + lagged.astype(np.uint32) + np.uint32(lag)
        ids[:, lag - 1] = (hashed >> np.uint32(7)) % BUCKETS
    return ids


def rotary(positions: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [n, size / 2] of each position."""
    speeds = ROTARY_BASE ** (-np.arange(0, size, 2, dtype=np.float32) / size)
    angles = positions[:, None].astype(np.float32) * speeds
    return np.cos(angles), np.sin(angles)


class Sequence:
    """One text in progress: its tokens and the keys and values computed so far."""

    def __init__(self, layers: int, heads: int, head_size: int) -> None:
        self.tokens: list[int] = []
        self.keys = np.empty((layers, heads, CONTEXT + 1, head_size), dtype=np.float32)
        self.values = np.empty_like(self.keys)


class Engine:
    def __init__(self, weights: Path) -> None:
        with np.load(weights) as stored:
            arrays = {name: stored[name] for name in stored.files}
        text, order = arrays.pop("text").tobytes(), arrays.pop("order")
        self._memory = Memory(text, order, VOCABULARY)
        self._weights = {name: array.astype(np.float32) for name, array in arrays.items()}
        self.layers = sum(name.startswith("attend_in_") for name in self._weights)
        self.heads = int(self._weights.pop("heads"))
        width = self._weights["bytes"].shape[1]
        self.head_size = width // self.heads
        self._turns = rotary(np.arange(CONTEXT + 1), self.head_size)

    def start(self) -> Sequence:
        return Sequence(self.layers, self.heads, self.head_size)

    def advance(self, sequence: Sequence, new: list[int]) -> np.ndarray:
        """Log chances [VOCABULARY] of the next token, after taking in at most PREFILL_CHUNK."""
        begin = len(sequence.tokens)
        sequence.tokens.extend(new)
        hidden = self._embed(sequence.tokens[max(0, begin - GRAMS) :], len(new))
        for layer in range(self.layers):
            hidden = hidden + self._attend(sequence, layer, begin, normalised(hidden))
            wide = np.maximum(normalised(hidden) @ self._weights[f"wide_{layer}"], 0)
            hidden = hidden + np.square(wide) @ self._weights[f"narrow_{layer}"]
        return self._remembered(sequence, normalised(hidden[-1]) @ self._weights["out"])

    def _remembered(self, sequence: Sequence, logits: np.ndarray) -> np.ndarray:
        chances = np.exp(logits - logits.max())
        recent = sequence.tokens[-LONGEST_MATCH:]
        context = bytes(TEXT_END if token == END else token for token in recent)
        mixed = self._memory.mix(context, chances / chances.sum())
        return np.log(mixed + SMALLEST_CHANCE)

    def _embed(self, recent: list[int], count: int) -> np.ndarray:
        tokens = np.array(recent)
        ids = gram_ids(tokens)[-count:]
        hidden = self._weights["bytes"][tokens[-count:]]
        for gram in range(GRAMS):
            hidden = hidden + self._weights[f"grams_{gram}"][ids[:, gram]]
        return hidden

    def _attend(self, sequence: Sequence, layer: int, begin: int, hidden: np.ndarray) -> np.ndarray:
        count, end = len(hidden), begin + len(hidden)
        first = max(0, begin - WINDOW + 1)
        projected = hidden @ self._weights[f"attend_in_{layer}"]
        split = projected.reshape(count, 3, self.heads, self.head_size).transpose(1, 2, 0, 3)
        sequence.keys[layer, :, begin:end] = self._turned(normalised(split[1]), begin)
        sequence.values[layer, :, begin:end] = split[2]
        query = self._turned(normalised(split[0]), begin) * np.float32(ATTENTION_SCALE)
        scores = query @ sequence.keys[layer, :, first:end].transpose(0, 2, 1)
        if count > 1:
            distance = np.arange(begin, end)[:, None] - np.arange(first, end)[None]
            scores = np.where((distance >= 0) & (distance < WINDOW), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = weights @ sequence.values[layer, :, first:end]
        joined = mixed.transpose(1, 0, 2).reshape(count, -1)
        return joined @ self._weights[f"attend_out_{layer}"]

    def _turned(self, heads: np.ndarray, begin: int) -> np.ndarray:
        count, half = heads.shape[1], self.head_size // 2
        cosine, sine = (turn[begin : begin + count] for turn in self._turns)
        left, right = heads[..., :half], heads[..., half:]
        return np.concatenate([left * cosine - right * sine, left * sine + right * cosine], -1)


def normalised(value: np.ndarray) -> np.ndarray:
    return value / np.sqrt(np.mean(np.square(value), axis=-1, keepdims=True) + EPSILON)
