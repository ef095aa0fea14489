"""tiny-lm behind the vLLM backend's tensors, so that production swaps the model and not the code.

Contract: triton-inference-server/vllm_backend, src/model.py and src/utils/request.py. Differences,
all stricter: an unknown sampling parameter is an error, and so is a prompt that leaves no room for
an answer. One token is one byte.
"""

import json
import queue
import threading
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from engine import CONTEXT, Engine
from generation import Generation, Refused, Sampling

MAX_ACTIVE = 64
STREAM_INTERVAL = 4  # tokens per response after the first, like vLLM's setting of this name
RETURNED = ("finish_reason", "num_input_tokens", "num_output_tokens")


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        self._engine = Engine(folder / "weights.npz")
        self._arrivals = queue.SimpleQueue()
        self._active = []
        self._loop = threading.Thread(target=self._run, name="generate")
        self._loop.start()

    def execute(self, requests):
        for request in requests:
            self._accept(request)

    def finalize(self):
        self._arrivals.put(None)
        self._loop.join()

    def _accept(self, request):
        sender = request.get_response_sender()
        if len(self._active) >= MAX_ACTIVE:
            problem = f"{MAX_ACTIVE} texts are being generated already, try again later"
            _fail(sender, problem, pb_utils.TritonError.UNAVAILABLE)
            return
        try:
            self._arrivals.put(Job(request, sender, self._engine))
        except Refused as refusal:
            _fail(sender, str(refusal), pb_utils.TritonError.INVALID_ARG)

    def _run(self):
        """One step of every text in turn, so that none waits for another to end."""
        while True:
            while not self._active or not self._arrivals.empty():
                job = self._arrivals.get()
                if job is None:
                    return
                self._active.append(job)
            self._active = [job for job in self._active if job.step()]


class Job:
    """One request: what it asked for, its text in progress, and where its answers go."""

    def __init__(self, request, sender, engine):
        self._sender = sender
        self._stream = _flag(request, "stream", absent=False)
        self._returned = [
            name for name in RETURNED if _flag(request, f"return_{name}", absent=False)
        ]
        exclude = _flag(request, "exclude_input_in_output", absent=self._stream)
        if self._stream and not exclude:
            raise Refused("exclude_input_in_output must not be false when stream is true")
        prompt = _text(request)
        self._unsent = "" if exclude else prompt
        self._started = False
        self._prompt_tokens = len(prompt.encode())
        self._generation = Generation(engine, prompt, _sampling(request))
        self._unsent_tokens = 0

    def step(self):
        """False once the last response was sent."""
        if self._sender.is_cancelled():
            _fail(self._sender, "request was cancelled", pb_utils.TritonError.CANCELLED)
            return False
        try:
            text, tokens, reason = self._generation.step()
        except (ArithmeticError, ValueError, LookupError) as problem:
            _fail(self._sender, f"generation failed: {problem}", pb_utils.TritonError.INTERNAL)
            return False
        self._unsent_tokens += tokens
        self._unsent += text
        if reason or (self._stream and self._unsent and self._due()):
            self._send(reason)
        return reason is None

    def _due(self):
        return not self._started or self._unsent_tokens >= STREAM_INTERVAL

    def _send(self, reason):
        values = {
            "text_output": np.array([self._unsent.encode()], dtype=np.object_),
            "finish_reason": np.array([str(reason).encode()], dtype=np.object_),
            "num_input_tokens": np.array([self._prompt_tokens], dtype=np.uint32),
            "num_output_tokens": np.array([self._unsent_tokens], dtype=np.uint32),
        }
        names = ["text_output", *self._returned]
        response = pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, values[name]) for name in names]
        )
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if reason else 0
        self._sender.send(response, flags=final)
        self._started = True
        self._unsent, self._unsent_tokens = "", 0


def _text(request):
    raw = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()[0]
    try:
        prompt = raw.decode()
    except UnicodeDecodeError as problem:
        raise Refused(f"text_input is not valid UTF-8: {problem}") from problem
    if not prompt:
        raise Refused("text_input is empty")
    if len(raw) >= CONTEXT:
        raise Refused(
            f"the prompt has {len(raw)} tokens; the context is {CONTEXT} tokens, "
            "prompt and answer together: shorten it"
        )
    return prompt


def _sampling(request):
    tensor = pb_utils.get_input_tensor_by_name(request, "sampling_parameters")
    text = request.parameters() if tensor is None else tensor.as_numpy()[0]
    try:
        given = json.loads(text)
    except ValueError as problem:
        raise Refused(f"sampling_parameters is not JSON: {problem}") from problem
    return Sampling.of(given)


def _flag(request, name, *, absent):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return absent if tensor is None else bool(tensor.as_numpy()[0])


def _fail(sender, message, code):
    response = pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
