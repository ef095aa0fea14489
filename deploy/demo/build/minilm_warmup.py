"""What the written graph answers to the warm-up texts, once it agrees with published values.

python minilm_expect.py WEIGHTS_DIR TEXT...    writes WEIGHTS_DIR/expect.json
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

TEXTS = ("This is an example sentence", "Each sentence is converted")
# The first values of the first text, from the model card's own example under torch in float32.
PUBLISHED = [0.06766, 0.0635, 0.04871, 0.0793, 0.03745, 0.00265, 0.03937, -0.0071]
PUBLISHED_TOLERANCE = 1e-4
WARMUP_TOLERANCE = 1e-3


def main(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    rows = [embed(tokenizer, session, text) for text in TEXTS]
    first = rows[0][0]
    if not np.allclose(first[: len(PUBLISHED)], PUBLISHED, atol=PUBLISHED_TOLERANCE):
        sys.exit(f"all-minilm-l6-v2 gives {first[:8].tolist()}, published is {PUBLISHED}")
    vectors = np.concatenate([vector for vector, _ in rows])
    expect = {
        "embedding": {
            "datatype": "FP32",
            "shape": [len(rows), len(first)],
            "data": [round(float(value), 6) for value in vectors],
            "tolerance": WARMUP_TOLERANCE,
        },
        "num_input_tokens": {
            "datatype": "INT32",
            "shape": [len(rows)],
            "data": [count for _, count in rows],
            "tolerance": 0,
        },
    }
    texts = {"datatype": "BYTES", "shape": [len(TEXTS)], "data": TEXTS}
    warmup = {"inputs": {"text": texts}, "expect": expect}
    (folder / "warmup.json").write_text(json.dumps(warmup))


def embed(
    tokenizer: Tokenizer, session: onnxruntime.InferenceSession, text: str
) -> tuple[np.ndarray, int]:
    ids = np.array([tokenizer.encode(text).ids])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return session.run(["embedding"], feed)[0][0], ids.size


if __name__ == "__main__":
    main(Path(sys.argv[1]))
