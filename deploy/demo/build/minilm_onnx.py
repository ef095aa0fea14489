"""Writes all-MiniLM-L6-v2 as an ONNX graph, from its safetensors, without torch.

    python minilm_onnx.py MODEL_DIR OUTPUT_DIR

BERT's forward pass as published (Devlin et al. 2018; weights: sentence-transformers), then mean
pooling over the attention mask and L2 normalisation, so the graph ends in the embedding itself.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

OPSET = 17
IR_VERSION = 9


class Graph:
    """Collects nodes; every method returns the name of its result."""

    def __init__(self, weights: dict[str, np.ndarray], config: dict[str, Any]) -> None:
        self.weights = weights
        self.config = config
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        if all(held.name != name for held in self.initializers):
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        result = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [result], **attributes))
        return result

    def ints(self, *values: int) -> str:
        return self.constant("i_" + "_".join(map(str, values)), np.array(values, dtype=np.int64))


def bert(weights: dict[str, np.ndarray], config: dict[str, Any]) -> Graph:
    graph = Graph(weights, config)
    mask = graph.op("Cast", "attention_mask", to=TensorProto.FLOAT)
    bias = attention_bias(graph, mask)
    hidden = embeddings(graph)
    for index in range(config["num_hidden_layers"]):
        hidden = layer(graph, f"encoder.layer.{index}.", hidden, bias)
    pool(graph, hidden, mask)
    return graph


def attention_bias(graph: Graph, mask: str) -> str:
    """0 where a token may be attended to, a large negative number where it is padding."""
    absent = graph.op("Sub", graph.constant("one", np.float32(1)), mask)
    spread = graph.op("Unsqueeze", absent, graph.ints(1, 2))
    return graph.op("Mul", spread, graph.constant("minus_large", np.float32(-1e9)))


def embeddings(graph: Graph) -> str:
    weights = graph.weights
    # Half precision halves this table, the largest tensor; its values lose 0.05 % at most.
    table = graph.constant("words", weights["embeddings.word_embeddings.weight"].astype(np.float16))
    words = graph.op("Cast", graph.op("Gather", table, "input_ids"), to=TensorProto.FLOAT)
    length = graph.op("Gather", graph.op("Shape", "input_ids"), graph.ints(1))
    positions = graph.constant("positions", weights["embeddings.position_embeddings.weight"])
    placed = graph.op("Slice", positions, graph.ints(0), length, graph.ints(0))
    kind = graph.constant("type_0", weights["embeddings.token_type_embeddings.weight"][0])
    summed = graph.op("Add", graph.op("Add", words, placed), kind)
    return norm(graph, "embeddings.LayerNorm", summed)


def layer(graph: Graph, prefix: str, hidden: str, bias: str) -> str:
    attended = attention(graph, prefix + "attention.", hidden, bias)
    summed = graph.op("Add", attended, hidden)
    middle = norm(graph, prefix + "attention.output.LayerNorm", summed)
    wide = gelu(graph, linear(graph, prefix + "intermediate.dense", middle))
    narrow = linear(graph, prefix + "output.dense", wide)
    return norm(graph, prefix + "output.LayerNorm", graph.op("Add", narrow, middle))


def attention(graph: Graph, prefix: str, hidden: str, bias: str) -> str:
    heads = graph.config["num_attention_heads"]
    size = graph.weights[prefix + "self.query.weight"].shape[0]
    split = graph.ints(0, 0, heads, size // heads)

    def part(name: str, order: list[int]) -> str:
        projected = linear(graph, f"{prefix}self.{name}", hidden)
        return graph.op("Transpose", graph.op("Reshape", projected, split), perm=order)

    query, key = part("query", [0, 2, 1, 3]), part("key", [0, 2, 3, 1])
    value = part("value", [0, 2, 1, 3])
    scale = graph.constant("scale", np.float32(np.sqrt(size // heads)))
    scores = graph.op("Add", graph.op("Div", graph.op("MatMul", query, key), scale), bias)
    mixed = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), value)
    joined = graph.op("Transpose", mixed, perm=[0, 2, 1, 3])
    flat = graph.op("Reshape", joined, graph.ints(0, 0, size))
    return linear(graph, prefix + "output.dense", flat)


def linear(graph: Graph, name: str, value: str) -> str:
    matrix = graph.constant(name + ".weight", graph.weights[name + ".weight"].T)
    product = graph.op("MatMul", value, matrix)
    return graph.op("Add", product, graph.constant(name + ".bias", graph.weights[name + ".bias"]))


def norm(graph: Graph, name: str, value: str) -> str:
    scale = graph.constant(name + ".weight", graph.weights[name + ".weight"])
    shift = graph.constant(name + ".bias", graph.weights[name + ".bias"])
    epsilon = graph.config["layer_norm_eps"]
    return graph.op("LayerNormalization", value, scale, shift, axis=-1, epsilon=epsilon)


def gelu(graph: Graph, value: str) -> str:
    scaled = graph.op("Div", value, graph.constant("root_two", np.float32(np.sqrt(2))))
    raised = graph.op("Add", graph.op("Erf", scaled), graph.constant("one", np.float32(1)))
    half = graph.constant("half", np.float32(0.5))
    return graph.op("Mul", graph.op("Mul", value, raised), half)


def pool(graph: Graph, hidden: str, mask: str) -> None:
    weighted = graph.op("Mul", hidden, graph.op("Unsqueeze", mask, graph.ints(2)))
    total = graph.op("ReduceSum", weighted, graph.ints(1), keepdims=0)
    count = graph.op("ReduceSum", mask, graph.ints(1), keepdims=1)
    mean = graph.op("Div", total, count)
    length = graph.op("ReduceL2", mean, axes=[1], keepdims=1)
    graph.nodes.append(helper.make_node("Div", [mean, length], ["embedding"]))


def write(source: Path, target: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    graph = bert(load_file(source / "model.safetensors"), config)
    tokens = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    size = config["hidden_size"]
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["texts", size])
    model = helper.make_model(
        helper.make_graph(graph.nodes, "minilm", tokens, [output], graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model)
    target.mkdir(parents=True, exist_ok=True)
    onnx.save(model, target / "model.onnx")
    shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
