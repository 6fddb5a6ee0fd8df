"""The models as ONNX graphs, from the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from benchmarks.quantise_cases.peers._problem import Array, Problem, layers, steps_cache

OPSET: Final = 20


class Graph:
    """A graph that is being written: each method adds nodes and gives the name of the result."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.nodes: list[Any] = []
        self.weights: dict[str, Array] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node with one result."""
        result = f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, list(inputs), [result], name=f"{kind}_{result}", **attributes)
        )
        return result

    def weight(self, name: str, array: Array | None = None) -> str:
        """A parameter by its path, or another array under that name."""
        key = name.replace("/", ".")
        self.weights[key] = self.problem.params[name] if array is None else array
        return key

    def dense(self, x: str, kernel: str, bias: str | None = None) -> str:
        """x·kernel + bias."""
        found = self.op("MatMul", x, self.weight(kernel))
        return found if bias is None else self.op("Add", found, self.weight(bias))

    def model(self, inputs: Sequence[Array], outputs: Sequence[str]) -> ModelProto:
        """The whole model; its inputs are called x0, x1, ..."""
        kinds = {"f": TensorProto.FLOAT, "i": TensorProto.INT32}
        graph = helper.make_graph(
            self.nodes,
            self.problem.model,
            [
                helper.make_tensor_value_info(f"x{n}", kinds[x.dtype.kind], x.shape)
                for n, x in enumerate(inputs)
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(np.ascontiguousarray(w), name) for name, w in self.weights.items()],
        )
        made: ModelProto = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10
        )
        return made


def graph(problem: Problem) -> tuple[ModelProto, list[Array]]:
    """The model, and its inputs in the layout that it takes."""
    made = Graph(problem)
    inputs, outputs = MODELS[problem.model](made)
    return made.model(inputs, outputs), inputs


def perceptron(g: Graph) -> tuple[list[Array], list[str]]:
    """Products with ReLU between them."""
    x, names = "x0", list(g.problem.params)
    for name in names[:-1]:
        x = g.op("Relu", g.dense(x, name))
    return g.problem.inputs, [g.dense(x, names[-1])]


def resnet18(g: Graph) -> tuple[list[Array], list[str]]:
    """Images come as NCHW, as ONNX has them."""

    def conv(x: str, name: str, norm: str, stride: int, padding: int) -> str:
        kernel = g.weight(name, np.transpose(g.problem.params[name], (3, 2, 0, 1)))
        taps = g.weights[kernel].shape[2:]
        x = g.op("Conv", x, kernel, kernel_shape=taps, strides=[stride] * 2, pads=[padding] * 4)
        facts = [g.weight(f"{norm}.{what}") for what in ("scale", "bias", "mean", "variance")]
        return g.op("BatchNormalization", x, *facts, epsilon=1e-5)

    x = g.op("Relu", conv("x0", "conv1", "bn1", 2, 3))
    x = g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for stage in range(1, 5):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            h = g.op("Relu", conv(x, f"{name}.conv1", f"{name}.bn1", stride, 1))
            h = conv(h, f"{name}.conv2", f"{name}.bn2", 1, 1)
            if f"{name}.down" in g.problem.params:
                x = conv(x, f"{name}.down", f"{name}.bn3", stride, 0)
            x = g.op("Relu", g.op("Add", x, h))
    x = g.op("Flatten", g.op("GlobalAveragePool", x))
    images = np.ascontiguousarray(np.transpose(g.problem.inputs[0], (0, 3, 1, 2)))
    return [images], [g.op("Gemm", x, g.weight("fc.weight"), g.weight("fc.bias"))]


def norm(g: Graph, x: str, name: str) -> str:
    """A layer norm."""
    return g.op(
        "LayerNormalization", x, g.weight(f"{name}/gain"), g.weight(f"{name}/bias"), axis=-1, epsilon=1e-5
    )


def projected(g: Graph, x: str, name: str, shape: Sequence[int]) -> str:
    """A dense layer with its bias, whose result has another shape."""
    x = g.dense(x, name, f"{name}_bias")
    return g.op("Reshape", x, g.weight("shape:" + ",".join(map(str, shape)), np.array(shape, np.int64)))


def residual(g: Graph, x: str, mixed: str, layer: str) -> str:
    """What follows attention in a layer."""
    x = g.op("Add", x, g.dense(mixed, f"{layer}/out", f"{layer}/out_bias"))
    h = g.dense(norm(g, x, f"{layer}/between"), f"{layer}/up", f"{layer}/up_bias")
    h = g.dense(g.op("Gelu", h, approximate="tanh"), f"{layer}/down", f"{layer}/down_bias")
    return g.op("Add", x, h)


def encoder(g: Graph) -> tuple[list[Array], list[str]]:
    """Layers with their norms in front, and one at the end."""
    batch, tokens, width = g.problem.inputs[0].shape
    heads = g.problem.config["heads"]
    shape, x = (batch, tokens, heads, width // heads), "x0"
    scale = g.weight("scale", np.array((width // heads) ** -0.5, np.float32))
    for layer in layers(g.problem):
        h = norm(g, x, f"{layer}/before")
        q, k, v = (projected(g, h, f"{layer}/{name}", shape) for name in ("query", "key", "value"))
        q, v = (g.op("Transpose", each, perm=[0, 2, 1, 3]) for each in (q, v))
        scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 3, 1]))
        mixed = g.op("MatMul", g.op("Softmax", g.op("Mul", scores, scale), axis=-1), v)
        mixed = g.op("Transpose", mixed, perm=[0, 2, 1, 3])
        whole = g.weight("whole", np.array((batch, tokens, width), np.int64))
        x = residual(g, x, g.op("Reshape", mixed, whole), layer)
    return g.problem.inputs, [norm(g, x, "norm")]


def decoder(g: Graph) -> tuple[list[Array], list[str]]:
    """The logits of a step; the cache is `steps_cache` and is only read."""
    token, caches = steps_cache(g.problem)
    batch, heads = caches[0].shape[:2]
    width = g.problem.params["table"].shape[1]
    size = width // heads
    scale = g.weight("scale", np.array(size**-0.5, np.float32))
    x = g.op("Gather", g.weight("table"), "x0")
    for number, layer in enumerate(layers(g.problem)):
        keys, values = f"x{2 * number + 1}", f"x{2 * number + 2}"
        h = norm(g, x, f"{layer}/before")
        q = projected(g, h, f"{layer}/query", (batch, heads, 1, size))
        k = projected(g, h, f"{layer}/key", (batch, heads, size, 1))
        v = projected(g, h, f"{layer}/value", (batch, heads, 1, size))
        scores = g.op("Concat", g.op("MatMul", q, keys), g.op("MatMul", q, k), axis=-1)
        weights = g.op("Softmax", g.op("Mul", scores, scale), axis=-1)
        parts = g.weight("parts", np.array((caches[0].shape[-1], 1), np.int64))
        names = [f"{layer}/old", f"{layer}/new"]
        g.nodes.append(helper.make_node("Split", [weights, parts], names, axis=-1, name=f"{layer}/split"))
        mixed = g.op("Add", g.op("MatMul", names[0], values), g.op("Mul", names[1], v))
        whole = g.weight("whole", np.array((batch, width), np.int64))
        x = residual(g, x, g.op("Reshape", mixed, whole), layer)
    table = g.weight("head", g.problem.params["table"].T)
    return [token, *caches], [g.op("MatMul", norm(g, x, "norm"), table)]


MODELS: Final = {"perceptron": perceptron, "resnet18": resnet18, "encoder": encoder, "decoder": decoder}
