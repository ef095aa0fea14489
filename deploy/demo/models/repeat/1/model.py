"""Triton's usual `repeat_int32`: one response per element of IN, each after its DELAY in ms.

WAIT, in ms, passes before the first response. An element of -1 makes the request fail there, after
the responses before it were sent; an empty IN ends the stream with no response at all.
"""

import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

CANCEL_POLL_S = 0.02
FAIL_HERE = -1


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            threading.Thread(target=_serve, args=(request,), daemon=True).start()


def _serve(request):
    sender = request.get_response_sender()
    values, delays_ms, wait_ms = (
        pb_utils.get_input_tensor_by_name(request, name).as_numpy()
        for name in ("IN", "DELAY", "WAIT")
    )
    if len(values) != len(delays_ms):
        refusal = f"IN has {len(values)} elements and DELAY {len(delays_ms)}, must be as many"
        _finish(sender, _error(refusal, pb_utils.TritonError.INVALID_ARG))
        return
    waited = _wait(sender, wait_ms[0])
    for index, (value, delay_ms) in enumerate(zip(values, delays_ms, strict=True)):
        if not waited or not _wait(sender, delay_ms):
            _finish(sender, _error("request was cancelled", pb_utils.TritonError.CANCELLED))
            return
        if value == FAIL_HERE:
            _finish(sender, _error(f"failed as asked at {index}", pb_utils.TritonError.INTERNAL))
            return
        sender.send(_element(value, index))
    sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _element(value, index):
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor("OUT", np.array([value], dtype=np.int32)),
            pb_utils.Tensor("IDX", np.array([index], dtype=np.uint32)),
        ]
    )


def _wait(sender, milliseconds):
    """False when the request was cancelled before its time was up."""
    until = time.monotonic() + float(milliseconds) / 1000
    while not sender.is_cancelled():
        left = until - time.monotonic()
        if left <= 0:
            return True
        time.sleep(min(left, CANCEL_POLL_S))
    return False


def _finish(sender, response):
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _error(message, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
