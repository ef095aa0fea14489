"""Trains tiny-lm on this repository's own text.

    python tiny_lm_train.py REPOSITORY ENGINE_DIR OUTPUT_DIR    writes weights.npz and expect.json

JAX, because compiling one training step makes it several times faster than differentiating numpy
call by call. The matrices inside the blocks are updated with Muon (Jordan et al. 2024), which
needs about half of Adam's steps here; embeddings and the output with Adam. Seeded, so the same
text gives the same model on the same machine.
"""

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tiny_lm_text import texts

WIDTH = 96
LAYERS = 2
HEADS = 3
LENGTH = 128
BATCH = 10
STEPS = 450
SEED = 20
WARMUP_STEPS = 20
MUON_RATE = 0.02
MUON_MOMENTUM = 0.95
ADAM_RATE = 0.006
ADAM_DECAYS = (0.9, 0.98)
DEADLINE_S = 60.0
REPORT_EVERY_S = 2.0

Arrays = dict[str, jax.Array]


def initial(rng: np.random.Generator, engine: Any) -> Arrays:
    def normal(*shape: int, scale: float) -> jax.Array:
        return jnp.asarray(rng.normal(scale=scale, size=shape).astype(np.float32))

    weights = {"bytes": normal(engine.VOCABULARY, WIDTH, scale=0.5)}
    for gram in range(engine.GRAMS):
        weights[f"grams_{gram}"] = normal(engine.BUCKETS, WIDTH, scale=0.1)
    for layer in range(LAYERS):
        weights[f"attend_in_{layer}"] = normal(WIDTH, 3 * WIDTH, scale=WIDTH**-0.5)
        weights[f"attend_out_{layer}"] = normal(WIDTH, WIDTH, scale=0.02)
        weights[f"wide_{layer}"] = normal(WIDTH, 4 * WIDTH, scale=WIDTH**-0.5)
        weights[f"narrow_{layer}"] = normal(4 * WIDTH, WIDTH, scale=0.01)
    weights["out"] = normal(WIDTH, engine.VOCABULARY, scale=0.02)
    return weights


def loss_of(weights: Arrays, tokens: jax.Array, grams: jax.Array, constants: Any) -> Any:
    """Mean bits per byte of each token given those before it."""
    hidden = weights["bytes"][tokens[:, :-1]]
    for gram in range(grams.shape[-1]):
        hidden = hidden + weights[f"grams_{gram}"][grams[:, :-1, gram]]
    for layer in range(LAYERS):
        hidden = hidden + attend(weights, layer, normalised(hidden), constants)
        wide = jax.nn.relu(normalised(hidden) @ weights[f"wide_{layer}"])
        hidden = hidden + jnp.square(wide) @ weights[f"narrow_{layer}"]
    logits = jax.nn.log_softmax(normalised(hidden) @ weights["out"])
    taken = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)
    return -jnp.mean(taken) / np.log(2)


def attend(weights: Arrays, layer: int, hidden: jax.Array, constants: Any) -> jax.Array:
    turns, mask, scale = constants
    batch, length, width = hidden.shape
    projected = hidden @ weights[f"attend_in_{layer}"]
    split = projected.reshape(batch, length, 3, HEADS, width // HEADS)
    query, key = (turned(normalised(split[:, :, part]), turns) for part in (0, 1))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * scale
    mixed = jax.nn.softmax(jnp.where(mask, scores, -1e9))
    joined = jnp.einsum("bhqk,bkhd->bqhd", mixed, split[:, :, 2]).reshape(batch, length, width)
    return joined @ weights[f"attend_out_{layer}"]


def turned(heads: jax.Array, turns: Any) -> jax.Array:
    cosine, sine = (turn[None, :, None] for turn in turns)
    left, right = jnp.split(heads, 2, axis=-1)
    return jnp.concatenate([left * cosine - right * sine, left * sine + right * cosine], -1)


def normalised(value: jax.Array) -> jax.Array:
    return value * jax.lax.rsqrt(jnp.mean(jnp.square(value), axis=-1, keepdims=True) + 1e-6)


def orthogonal(matrix: jax.Array) -> jax.Array:
    """Newton-Schulz iteration towards the nearest orthogonal matrix (Jordan et al. 2024)."""
    tall = matrix.shape[0] > matrix.shape[1]
    value = matrix.T if tall else matrix
    value = value / (jnp.linalg.norm(value) + 1e-7)
    for _ in range(5):
        gram = value @ value.T
        value = 3.4445 * value + (-4.7750 * gram + 2.0315 * gram @ gram) @ value
    return value.T if tall else value


def is_matrix(name: str) -> bool:
    return name.startswith(("attend_", "wide_", "narrow_"))


@partial(jax.jit, donate_argnums=(0, 1))
def step(weights: Arrays, moments: Any, batch: Any, constants: Any, when: Any) -> Any:
    at, progress = when
    loss, gradients = jax.value_and_grad(loss_of)(weights, *batch, constants)
    rate = jnp.minimum((at + 1) / WARMUP_STEPS, 1.0) * jnp.minimum(1.0, 1.5 * (1 - progress))
    updated, kept = {}, {}
    for name, gradient in gradients.items():
        first, second = moments[name]
        if is_matrix(name):
            first = MUON_MOMENTUM * first + gradient
            shape = max(1.0, gradient.shape[0] / gradient.shape[1]) ** 0.5
            change = MUON_RATE * shape * orthogonal(gradient + MUON_MOMENTUM * first)
        else:
            slow, fast = ADAM_DECAYS
            first = slow * first + (1 - slow) * gradient
            second = fast * second + (1 - fast) * jnp.square(gradient)
            scale = jnp.sqrt(second / (1 - fast ** (at + 1))) + 1e-8
            change = ADAM_RATE * first / (1 - slow ** (at + 1)) / scale
        updated[name], kept[name] = weights[name] - rate * change, (first, second)
    return updated, kept, loss


def train(stream: np.ndarray, engine: Any) -> Arrays:
    rng = np.random.default_rng(SEED)
    grams = engine.gram_ids(stream)
    weights = initial(rng, engine)
    moments = {name: (jnp.zeros_like(w), jnp.zeros_like(w)) for name, w in weights.items()}
    span = np.arange(LENGTH)
    distance = span[:, None] - span[None]
    turns = engine.rotary(span, WIDTH // HEADS)
    mask = (distance >= 0) & (distance < engine.WINDOW)
    constants = (turns, mask, np.float32(engine.ATTENTION_SCALE))
    started = reported = time.monotonic()
    for at in range(STEPS):
        # On a slow machine time runs out before steps do; the rate still ends near zero.
        progress = max(at / STEPS, (time.monotonic() - started) / DEADLINE_S)
        if progress >= 1:
            print(f"tiny-lm: stopped after {at} of {STEPS} steps, this machine is busy or slow")
            break
        begins = rng.integers(0, len(stream) - LENGTH - 1, size=BATCH)
        rows = begins[:, None] + np.arange(LENGTH + 1)
        batch = (stream[rows], grams[rows])
        weights, moments, loss = step(
            weights, moments, batch, constants, (np.float32(at), np.float32(progress))
        )
        jax.block_until_ready(loss)  # or the deadline would be checked long before its time
        now = time.monotonic()
        if now - reported > REPORT_EVERY_S or at == STEPS - 1:
            reported = now
            report(at + 1, float(loss), now - started)
    return weights


def report(done: int, loss: float, elapsed_s: float) -> None:
    bar = "#" * (24 * done // STEPS)
    left_s = elapsed_s / done * (STEPS - done)
    line = f"tiny-lm: training [{bar:<24}] {done}/{STEPS}, {loss:.2f} bits per byte"
    print(
        f"{line}, {left_s:.0f} s left",
        end="\r" if sys.stdout.isatty() and done < STEPS else "\n",
        flush=True,
    )


def stream_of(repository: Path, end: int) -> np.ndarray:
    """All texts in one line of tokens, shuffled, each ended."""
    found = texts(repository)
    order = np.random.default_rng(SEED).permutation(len(found))
    clean = [found[index].replace("\0", "").encode() for index in order]
    pieces = [np.frombuffer(text, dtype=np.uint8) for text in clean]
    ended = [np.concatenate([piece.astype(np.int32), [end]]) for piece in pieces]
    return np.concatenate([[end], *ended]).astype(np.int32)


def main(repository: Path, engine_folder: Path, output: Path) -> None:
    sys.path.insert(0, str(engine_folder))
    import engine  # noqa: PLC0415  # the served code itself, so that both agree

    stream = stream_of(repository, engine.END)
    print(f"tiny-lm: learning from {len(stream) / 1000:.0f} kB of this repository's text")
    weights = train(stream, engine)
    stored = {name: np.asarray(value) for name, value in weights.items()}
    for gram in range(engine.GRAMS):
        stored[f"grams_{gram}"] = stored[f"grams_{gram}"].astype(np.float16)
    stored |= remembered(stream, engine.END)
    np.savez(output / "weights.npz", heads=np.array(HEADS), **stored)


def remembered(stream: np.ndarray, end: int) -> dict[str, np.ndarray]:
    """The text and its suffix array, for the served model's memory."""
    from memory import TEXT_END, suffix_order  # noqa: PLC0415  # the served code itself

    text = np.where(stream == end, TEXT_END, stream).astype(np.uint8)
    return {"text": text, "order": suffix_order(text.tobytes())}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
