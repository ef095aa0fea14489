"""A model that embeds texts, and answers garbage at the nodes of which a file says so."""

from __future__ import annotations

from pathlib import Path

import yaml
from busbar_messaging.bundles.sealing import SigningKey
from busbar_runtime.platform import Platform

from harness.bundles import Made, make

NAME, WIDTH = "scrambled", 4
_CONFIG = """
name: "scrambled"
backend: "python"
max_batch_size: 0
input [ { name: "text", data_type: TYPE_STRING, dims: [ -1 ] } ]
output [ { name: "embedding", data_type: TYPE_FP32, dims: [ -1, 4 ] } ]
instance_group [ { kind: KIND_CPU, count: 1 } ]
"""
_MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def initialize(self, args):
        self.here = args["model_repository"]
    def execute(self, requests):
        return [self.answer(one) for one in requests]
    def answer(self, request):
        count = len(pb_utils.get_input_tensor_by_name(request, "text").as_numpy())
        wrong = np.nan if any(where in self.here for where in open({marks!r}).read().split()) else 1
        answer = np.full((count, 4), wrong, dtype=np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("embedding", answer)])
"""


def scrambling(platform: Platform, marks: Path) -> Made:
    """The bundle, approved. `marks` lists parts of the paths of models that answer garbage."""
    manifest = {
        "name": NAME,
        "version": "1",
        "task": "embed",
        "slots": 4,
        "memory_mb": 64,
        "instances": 1,
        "decoupled": False,
        "price_class": "embed-small",
        "warmup": {
            "inputs": {"text": {"datatype": "BYTES", "shape": [1], "data": ["a"]}},
            "expect": {
                "embedding": {"datatype": "FP32", "shape": [1, WIDTH], "data": [1.0] * WIDTH}
            },
        },
    }
    made = make(
        {
            "busbar.yaml": yaml.safe_dump(manifest).encode(),
            "config.pbtxt": _CONFIG.encode(),
            "1/model.py": _MODEL.format(marks=str(marks)).encode(),
        }
    )
    key = SigningKey.from_pem(platform.secrets.signing_key.encode())
    return made.sealed_by(key)
