"""The requests that the benchmark repeats: 16 floats to a model that returns them."""

from __future__ import annotations

import json

import numpy as np
from load import Shot
from tritonclient.grpc import service_pb2

MODEL = "echo-fp32"
BATCHED_MODEL = "echo-fp32-batched"
VALUES = np.arange(16, dtype=np.float32)
_SAMPLED = "00-{trace:032x}-00000000000000aa-01"
_FRAME_HEADER_BYTES = 5


def grpc_shot(address: str, headers: dict[str, str], model: str = MODEL) -> Shot:
    """ModelInfer over gRPC."""
    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[VALUES.tobytes()])
    request.inputs.add(name="INPUT0", datatype="FP32", shape=_shape(model))
    payload = request.SerializeToString()
    return Shot(
        url=f"http://{address}/inference.GRPCInferenceService/ModelInfer",
        headers={"content-type": "application/grpc", "te": "trailers", **headers},
        body=b"\x00" + len(payload).to_bytes(_FRAME_HEADER_BYTES - 1, "big") + payload,
        http2=True,
    )


def http_shot(base_url: str, headers: dict[str, str], model: str = MODEL) -> Shot:
    """The v2 infer route with the binary tensor extension, both ways."""
    document = {
        "inputs": [
            {
                "name": "INPUT0",
                "datatype": "FP32",
                "shape": _shape(model),
                "parameters": {"binary_data_size": VALUES.nbytes},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(document).encode()
    return Shot(
        url=f"{base_url}/v2/models/{model}/infer",
        headers={
            "content-type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(head)),
            **headers,
        },
        body=head + VALUES.tobytes(),
        http2=False,
    )


def _shape(model: str) -> list[int]:
    """With the dimension that is batched, where there is one."""
    return [1, *VALUES.shape] if model == BATCHED_MODEL else [*VALUES.shape]


def sampled_header(trace: int) -> dict[str, str]:
    """A traceparent that asks for every request to be traced."""
    return {"traceparent": _SAMPLED.format(trace=trace)}
