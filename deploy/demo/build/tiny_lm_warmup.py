"""The warm-up of tiny-lm: a prompt, and the greedy continuation that every machine must agree on.

    python tiny_lm_warmup.py ENGINE_DIR WEIGHTS_DIR    writes WEIGHTS_DIR/warmup.json

Processors round differently, so a greedy choice between near equals may fall differently. Of
several prompts the one is taken whose closest choice was the clearest.
"""

import json
import sys
from pathlib import Path
from typing import Any

PROMPTS = tuple(
    f"User: {question}\nAssistant: "
    for question in ("What is Busbar?", "What is a lease?", "What is the gateway?", "Hello!")
)
TOKENS = (8, 4, 2, 1)
CLEAR_MARGIN = 0.05
SAMPLING: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


def main(engine_folder: Path, weights: Path) -> None:
    sys.path.insert(0, str(engine_folder))
    from engine import Engine  # noqa: PLC0415  # the served code itself
    from generation import Generation, Sampling  # noqa: PLC0415

    engine = Engine(weights / "weights.npz")

    def continued(prompt: str, tokens: int) -> tuple[float, str]:
        generation = Generation(engine, prompt, Sampling.of(SAMPLING | {"max_tokens": tokens}))
        text, reason = "", None
        while reason is None:
            new, _, reason = generation.step()
            text += new
        return generation.narrowest_margin, text

    for tokens in TOKENS:
        margin, text, prompt = max((*continued(prompt, tokens), prompt) for prompt in PROMPTS)
        if margin >= CLEAR_MARGIN or tokens == TOKENS[-1]:
            break
    write(weights, prompt, text, tokens)


def write(weights: Path, prompt: str, text: str, tokens: int) -> None:
    def flag(*, value: bool) -> dict[str, Any]:
        return {"datatype": "BOOL", "shape": [1], "data": [value]}

    def texts(value: str) -> dict[str, Any]:
        return {"datatype": "BYTES", "shape": [1], "data": [value]}

    def count(value: int) -> dict[str, Any]:
        return {"datatype": "UINT32", "shape": [1], "data": [value], "tolerance": 0}

    inputs = {
        "text_input": texts(prompt),
        "stream": flag(value=False),
        "exclude_input_in_output": flag(value=True),
        "return_num_input_tokens": flag(value=True),
        "return_num_output_tokens": flag(value=True),
        "sampling_parameters": texts(json.dumps(SAMPLING | {"max_tokens": tokens})),
    }
    expect = {
        "text_output": texts(text),
        "num_input_tokens": count(len(prompt.encode())),
        "num_output_tokens": count(tokens),
    }
    (weights / "warmup.json").write_text(json.dumps({"inputs": inputs, "expect": expect}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
