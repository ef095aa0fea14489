"""Sentence embeddings: text BYTES [n] -> embedding FP32 [n, 384] of length 1, tokens INT32 [n].

A text longer than 256 tokens, the length this model was trained for, is refused unless the
request says `truncate`: silently embedding only its beginning would be a wrong answer.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

MAX_TOKENS = 256
MAX_TEXTS = 2048
CHUNK_TOKENS = 1024  # bounds memory: attention holds heads x tokens x width floats


class Refused(Exception):
    """The request can never succeed as it is; the message says why."""


class Cancelled(Exception):
    """The caller no longer wants the answer."""


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        parameters = json.loads(args["model_config"]).get("parameters", {})
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters["threads"]["string_value"])
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        try:
            rows = self._token_rows(request)
            embedding = self._embed(rows, request)
        except Refused as refusal:
            error = pb_utils.TritonError(str(refusal), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        except Cancelled:
            error = pb_utils.TritonError("request was cancelled", pb_utils.TritonError.CANCELLED)
            return pb_utils.InferenceResponse(error=error)
        counts = np.array([len(row) for row in rows], dtype=np.int32)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("embedding", embedding),
                pb_utils.Tensor("num_input_tokens", counts),
            ]
        )

    def _token_rows(self, request):
        texts = _texts(request)
        truncate = _flag(request, "truncate")
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        for index, row in enumerate(rows):
            if len(row) <= MAX_TOKENS:
                continue
            if not truncate:
                raise Refused(
                    f"text[{index}] has {len(row)} tokens, the model takes {MAX_TOKENS}: "
                    "shorten it, split it, or set truncate to true"
                )
            rows[index] = row[: MAX_TOKENS - 1] + row[-1:]
        return rows

    def _embed(self, rows, request):
        """Texts of similar length share a batch, so little is spent on padding."""
        result = np.empty((len(rows), 384), dtype=np.float32)
        for chunk in _chunks(rows):
            if request.is_cancelled():
                raise Cancelled
            width = len(rows[chunk[-1]])
            ids = np.zeros((len(chunk), width), dtype=np.int64)
            mask = np.zeros_like(ids)
            for at, index in enumerate(chunk):
                ids[at, : len(rows[index])] = rows[index]
                mask[at, : len(rows[index])] = 1
            feed = {"input_ids": ids, "attention_mask": mask}
            result[chunk] = self._session.run(["embedding"], feed)[0]
        return result


def _chunks(rows):
    """Indices of `rows`, shortest first, in groups of at most CHUNK_TOKENS after padding."""
    chunk = []
    for index in sorted(range(len(rows)), key=lambda index: len(rows[index])):
        if (len(chunk) + 1) * len(rows[index]) > CHUNK_TOKENS:
            yield chunk
            chunk = []
        chunk.append(index)
    yield chunk


def _texts(request):
    raw = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
    if raw.size == 0:
        raise Refused("text holds no strings")
    if raw.size > MAX_TEXTS:
        raise Refused(f"text holds {raw.size} strings, at most {MAX_TEXTS} fit in one request")
    try:
        return [text.decode() for text in raw]
    except UnicodeDecodeError as problem:
        raise Refused(f"text is not valid UTF-8: {problem}") from problem


def _flag(request, name):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return tensor is not None and bool(tensor.as_numpy()[0])
