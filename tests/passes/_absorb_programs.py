"""Programs of which `absorb` takes something into weights, and programs that it leaves alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.passes._absorb import (
    AFTER,
    BEFORE,
    IMAGE,
    ONE_CONV,
    ONE_DOT,
    SUM,
    B,
    Case,
    S,
    W,
    X,
    batch_norm,
    conv,
    norm,
    numbers,
)


def block(p: Any, x: Any) -> Any:
    """Attention without its softmax: norm, three projections, scaled scores."""
    h = x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * p["g"]
    q, k, v = [(h @ p[n]).reshape(2, 4, 2, 3).transpose(0, 2, 1, 3) for n in "qkv"]
    return jnp.einsum("bhts,bhsd->bhtd", jnp.einsum("bhtd,bhsd->bhts", q * 3**-0.5, k), v)


def layer_norm(p: Any, x: Any) -> Any:
    centred = x - jnp.mean(x, -1, keepdims=True)
    scale = lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + 1e-6) * p["s"]
    return (centred * scale + p["t"]) @ p["w"] + p["b"]


def scanned(p: Any, x: Any) -> Any:
    def layer(h: Any, p: Any) -> Any:
        return jnp.tanh((h @ p["w"] + p["b"]) * p["s"]), None

    return lax.scan(layer, x, p)[0]


TAKEN = {
    "hand-written batch norm": Case(
        lambda p, x: (x @ p["w"] + p["b"] - p["m"]) / jnp.sqrt(p["v"] + 1e-5) * p["g"] + p["t"],
        {"w": W, "b": B, **norm(4)},
        X,
        {AFTER: 1},
        {"add": 1, **ONE_DOT},
    ),
    "convolution": Case(
        lambda p, x: batch_norm(conv(x, p["w"]), p),
        {"w": numbers(3, 3, 4, 6), **norm(6)},
        IMAGE,
        {AFTER: 1},
        ONE_CONV,
    ),
    "depthwise": Case(
        lambda p, x: batch_norm(conv(x, p["w"], feature_group_count=4), p),
        {"w": numbers(3, 3, 1, 8), **norm(8)},
        IMAGE,
        {AFTER: 1},
        ONE_CONV,
    ),
    "transposed, channels first": Case(
        lambda p, x: (
            -lax.conv_general_dilated(
                x,
                p["w"],
                (1, 1),
                [(1, 1), (1, 1)],
                lhs_dilation=(2, 2),
                dimension_numbers=("NCHW", "OIHW", "NCHW"),
            )
            * p["s"][:, None, None]
        ),
        {"w": numbers(3, 5, 3, 3), "s": numbers(3)},
        numbers(2, 5, 4, 4),
        {AFTER: 1},
        {"conv_general_dilated": 1},
    ),
    "scale in front of grouped": Case(
        lambda p, x: conv(x * p["s"], p["w"], feature_group_count=2),
        {"w": numbers(3, 3, 2, 6), "s": numbers(4)},
        IMAGE,
        {BEFORE: 1},
        {"conv_general_dilated": 1},
    ),
    "shift in front, unpadded": Case(
        lambda p, x: conv(x / p["s"] - p["t"], p["w"], feature_group_count=2, padding="VALID") + p["b"],
        {"w": numbers(3, 3, 2, 6), "s": np.abs(numbers(4)) + 1, "t": numbers(4), "b": numbers(6)},
        IMAGE,
        {BEFORE: 2, AFTER: 1},
        ONE_CONV,
    ),
    "coefficient minus product, weight on the left": Case(
        lambda p, x: (p["b"] - jnp.einsum("oi,bi->ob", p["w"], x).T) * p["s"] - p["b"],
        {"w": W.T, "b": B, "s": numbers(4)},
        X,
        {AFTER: 1},
        {"add": 1, **ONE_DOT},
    ),
    "batched": Case(
        lambda p, x: jnp.einsum("ebi,eio->ebo", x * p["s"][:, None], p["w"]) * p["t"][:, None, :],
        {"w": numbers(2, 6, 4), "s": numbers(2, 6), "t": numbers(2, 4)},
        numbers(2, 3, 6),
        {BEFORE: 1, AFTER: 1},
        ONE_DOT,
    ),
    "heads": Case(
        lambda p, x: (x @ p["w"]).reshape(3, 2, 2).transpose(1, 0, 2) * p["s"][:, None, None] * p["t"],
        {"w": W, "s": numbers(2), "t": numbers(2)},
        X,
        {AFTER: 1},
        ONE_DOT,
    ),
    "mixed precision": Case(
        lambda p, x: lax.dot(x.astype(jnp.bfloat16), p["w"]).astype(jnp.float32) * p["s"] + p["b"],
        {"w": W.astype(jnp.bfloat16), "s": numbers(4), "b": B},
        X,
        {AFTER: 1},
        {"add": 1, **ONE_DOT},
    ),
    "a branch": Case(
        lambda p, x: lax.cond(x[0, 0] > 0, lambda: (x @ p["w"]) * p["s"], lambda: x[:, :4]),
        {"w": W, "s": B},
        X,
        {AFTER: 1},
        ONE_DOT,
    ),
    "block": Case(
        block,
        {"g": numbers(6), "q": numbers(6, 6), "k": numbers(6, 6), "v": numbers(6, 6)},
        numbers(2, 4, 6),
        {BEFORE: 1, AFTER: 1},
        {"add": 1, "mul": 2, "div": 1, "dot_general": 5},
    ),
    "layer norm": Case(
        layer_norm,
        {"s": S, "t": numbers(6), "w": W, "b": B},
        X,
        {BEFORE: 2, AFTER: 1},
        {"add": 2, "sub": 1, "mul": 2, "div": 2, "dot_general": 1},
    ),
    "adapter": Case(
        lambda p, x: x @ p["w"] + p["b"] + (x @ p["a"]) @ p["c"] * 0.5,
        {"w": W, "b": B, "a": numbers(6, 2), "c": numbers(2, 4)},
        X,
        {AFTER: 1, SUM: 1},
        {"add": 1, **ONE_DOT},
    ),
    "adapter of several axes": Case(
        lambda p, x: (
            jnp.einsum("bij,jik->bk", x, p["w"])
            + jnp.einsum("brs,srk->bk", jnp.einsum("bij,irjs->brs", x, p["a"]), p["c"])
        ),
        {"w": numbers(3, 2, 4), "a": numbers(2, 5, 3, 2), "c": numbers(2, 5, 4)},
        numbers(3, 2, 3),
        {SUM: 1},
        ONE_DOT,
    ),
    "layers of a scan": Case(
        scanned,
        {"w": numbers(3, 6, 6), "b": numbers(3, 6), "s": numbers(3, 6)},
        X,
        {AFTER: 1},
        {"add": 1, **ONE_DOT},
    ),
}

LEFT = {
    "activation between": Case(
        lambda p, x: jax.nn.relu(x @ p["w"]) * p["s"], {"w": W, "s": B}, X, {}, {"mul": 1, **ONE_DOT}
    ),
    "residual": Case(
        lambda p, x: (x @ p["w"] + x) * p["s"],
        {"w": numbers(6, 6), "s": S},
        X,
        {},
        {"add": 1, "mul": 1, **ONE_DOT},
    ),
    "also read elsewhere": Case(
        lambda p, x: (lambda y: (y * p["s"], y))(x @ p["w"]),
        {"w": W, "s": B},
        X,
        {},
        {"mul": 1, **ONE_DOT},
        "also read elsewhere",
    ),
    "along rows": Case(
        lambda p, x: (x @ p["w"]) * p["s"],
        {"w": W, "s": numbers(3, 1)},
        X,
        {},
        {"mul": 1, **ONE_DOT},
        "along other axes than the weight's",
    ),
    "tied weight": Case(
        lambda p, x: (x @ p["w"]) * p["s"] @ p["w"].T,
        {"w": W, "s": B},
        X,
        {},
        {"mul": 1, "dot_general": 2},
        "would be kept twice",
    ),
    "another branch": Case(
        lambda p, x: lax.cond(x[0, 0] > 0, lambda: (x @ p["w"]) * p["s"], lambda: x @ p["w"]),
        {"w": W, "s": B},
        X,
        {},
        {"mul": 1, "dot_general": 2},
        "would be kept twice",
    ),
    "decoded weight": Case(
        lambda p, x: (x @ p["w"].astype(jnp.float32)) * p["s"],
        {"w": np.ones((6, 4), np.int8), "s": B},
        X,
        {},
        {"mul": 1, **ONE_DOT},
        "made of something smaller",
    ),
    "late scale": Case(
        lambda p, x: (x @ p["w"]) * x[:, :4] * p["s"], {"w": W, "s": B}, X, {}, {"mul": 2, **ONE_DOT}
    ),
    "a reader that cannot": Case(
        lambda p, x: (lambda h: h @ p["w"] + h[:, :4])(x * p["s"]),
        {"w": W, "s": S},
        X,
        {},
        {"mul": 1, "add": 1, **ONE_DOT},
    ),
    "squared": Case(
        lambda p, x: (lambda h: (h * -h) @ p["w"])(x * p["s"]),
        {"w": W, "s": S},
        X,
        {},
        {"mul": 2, "neg": 1, **ONE_DOT},
    ),
    "padded shift": Case(
        lambda p, x: conv(x + p["t"], p["w"]) + p["b"],
        {"w": numbers(3, 3, 4, 6), "t": numbers(4), "b": numbers(6)},
        IMAGE,
        {},
        {"add": 2, "conv_general_dilated": 1},
        "pads it",
    ),
    "shift without a bias": Case(
        lambda p, x: (x + p["t"]) @ p["w"], {"w": W, "t": S}, X, {}, {"add": 1, **ONE_DOT}, "no bias follows"
    ),
    "float16": Case(
        lambda p, x: (x.astype(jnp.float16) @ p["w"]) * p["s"],
        {"w": W.astype(np.float16), "s": B.astype(np.float16)},
        X,
        {},
        {"mul": 1, **ONE_DOT},
    ),
    "adapters of different inputs": Case(
        lambda p, x: x @ p["w"] + (jnp.sin(x) @ p["a"]) @ p["c"],
        {"w": W, "a": numbers(6, 2), "c": numbers(2, 4)},
        X,
        {},
        {"add": 1, "dot_general": 3},
    ),
    "one bias": Case(lambda p, x: x @ p["w"] + p["b"], {"w": W, "b": B}, X, {}, {"add": 1, **ONE_DOT}),
}
