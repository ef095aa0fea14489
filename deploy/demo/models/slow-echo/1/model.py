"""INPUT0 comes back after `delay_ms`, unless cancelled; `fault` asks for a way to fail instead.

Requests wait side by side, each in its own thread, so one instance serves many slow callers.
"""

import os
import threading
import time

import triton_python_backend_utils as pb_utils

CANCEL_POLL_S = 0.02
MAX_DELAY_MS = 600_000
ERRORS = ("invalid_arg", "not_found", "unavailable", "internal", "unknown")
FAULTS = (*ERRORS, "crash", "hang")


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            threading.Thread(target=_serve, args=(request,), daemon=True).start()


def _serve(request):
    sender = request.get_response_sender()
    try:
        response = _answer(request, sender)
    except pb_utils.TritonModelException as problem:
        response = _error(str(problem), pb_utils.TritonError.INTERNAL)
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _answer(request, sender):
    values = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
    delay_ms = int(_first(request, "delay_ms", 0))
    fault = _first(request, "fault", b"").decode()
    if not 0 <= delay_ms <= MAX_DELAY_MS:
        refusal = f"delay_ms is {delay_ms}, must be 0 to {MAX_DELAY_MS}"
        return _error(refusal, pb_utils.TritonError.INVALID_ARG)
    if fault and fault not in FAULTS:
        refusal = f"fault is {fault!r}, must be one of {', '.join(FAULTS)}"
        return _error(refusal, pb_utils.TritonError.INVALID_ARG)
    if not _wait(sender, delay_ms / 1000):
        return _error("request was cancelled", pb_utils.TritonError.CANCELLED)
    if fault == "crash":
        os._exit(1)
    while fault == "hang":
        time.sleep(1)
    if fault:
        return _error(f"failed as asked: {fault}", getattr(pb_utils.TritonError, fault.upper()))
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", values)])


def _wait(sender, seconds):
    """False when the request was cancelled before its time was up."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if sender.is_cancelled():
            return False
        time.sleep(min(left, CANCEL_POLL_S))
    return True


def _first(request, name, absent):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return absent if tensor is None else tensor.as_numpy()[0]


def _error(message, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
