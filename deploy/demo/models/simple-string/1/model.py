"""Triton's usual `simple_string`: sums and differences of decimal numbers written as text."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [_answer(request) for request in requests]


def _answer(request):
    try:
        left, right = _numbers(request, "INPUT0"), _numbers(request, "INPUT1")
    except (ValueError, OverflowError) as problem:
        refusal = pb_utils.TritonError(
            f"every element must be a decimal 64-bit integer: {problem}",
            pb_utils.TritonError.INVALID_ARG,
        )
        return pb_utils.InferenceResponse(error=refusal)
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor("OUTPUT0", (left + right).astype(np.bytes_).astype(np.object_)),
            pb_utils.Tensor("OUTPUT1", (left - right).astype(np.bytes_).astype(np.object_)),
        ]
    )


def _numbers(request, name):
    texts = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    return np.array([int(text) for text in texts.ravel()], dtype=np.int64).reshape(texts.shape)
