"""Reads of a part, diagonals and sums of products, last rows of scans."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.rewrite_cases._case import Case, integers, normal

Args = tuple[Any, ...]


def square() -> Args:
    """Two matrices."""
    return normal(1024, 1024), normal(1024, 1024, seed=1)


def indexed() -> Args:
    """Two matrices and a number."""
    return (*square(), jnp.int32(3))


def numbered() -> Args:
    """Two matrices and some row numbers."""
    return (*square(), integers(16, below=1024, seed=2))


def tokens() -> Args:
    """Hidden states and an output projection."""
    return normal(4, 128, 512), normal(512, 8192, seed=1)


def network() -> Args:
    """Hidden states, two weights and their biases."""
    return (
        normal(8, 256, 256),
        normal(256, 1024, seed=1),
        normal(1024, seed=2),
        normal(1024, 256, seed=3),
        normal(256, seed=4),
    )


def mlp(x: jax.Array, w: jax.Array, b: jax.Array, v: jax.Array, c: jax.Array) -> jax.Array:
    """Two layers with a residual connection and a normalisation."""
    y = x + jax.nn.relu(x @ w + b) @ v + c
    mean = y.mean(-1, keepdims=True)
    return (y - mean) * lax.rsqrt(jnp.square(y - mean).mean(-1, keepdims=True) + 1e-5)


def recurrent() -> Args:
    """A sequence and the weights of a recurrent network with an output layer."""
    return (
        normal(256, 16, 128),
        normal(128, 128, seed=1) * 0.05,
        normal(128, 512, seed=2) * 0.05,
    )


def outputs(xs: jax.Array, w: jax.Array, v: jax.Array) -> jax.Array:
    """The outputs of a recurrent network at every step."""

    def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = jnp.tanh(x + h @ w)
        return h, h @ v

    return lax.scan(step, jnp.zeros_like(xs[0]), xs)[1]


def last_output(xs: jax.Array, w: jax.Array, v: jax.Array) -> jax.Array:
    """The last output alone."""

    def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(x + h @ w), None

    return lax.scan(step, jnp.zeros_like(xs[0]), xs)[0] @ v


def convolved(x: jax.Array, w: jax.Array) -> jax.Array:
    """A convolution of images."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)


def images() -> Args:
    """Images and a kernel."""
    return normal(16, 32, 32, 32), normal(3, 3, 32, 64, seed=1)


def top_rows(x: jax.Array, w: jax.Array) -> jax.Array:
    """The first four rows of a convolution, by hand."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x[:, :5], w, (1, 1), ((1, 0), (1, 1)), dimension_numbers=numbers)


def around(x: jax.Array, axis: int) -> jax.Array:
    """What each of three taps meets along an axis: what is inside is added up once for all of them."""
    first, last = lax.index_in_dim(x, 0, axis), lax.index_in_dim(x, x.shape[axis] - 1, axis)
    inside = jnp.sum(lax.slice_in_dim(x, 1, x.shape[axis] - 1, axis=axis), axis, keepdims=True)
    return jnp.concatenate([first + inside, first + inside + last, inside + last], axis)


def pooled(x: jax.Array, w: jax.Array) -> jax.Array:
    """The mean of a convolution over all places, by hand: what each tap meets is added up first."""
    met = around(around(x, 1), 2)
    return jnp.einsum("bhwi,hwio->bo", met, w) / (x.shape[1] * x.shape[2])


def chosen() -> Args:
    """Hidden states, an output projection, and one class for each."""
    return normal(512, 256), normal(256, 8192, seed=1), integers(512, below=8192, seed=2)


CASES: Final = [
    Case("demand: (A@B)[:8]", lambda a, b: (a @ b)[:8], lambda a, b: a[:8] @ b, square),
    Case("demand: (A@B)[:, :8]", lambda a, b: (a @ b)[:, :8], lambda a, b: a @ b[:, :8], square),
    Case("demand: (A@B)[i]", lambda a, b, i: (a @ b)[i], lambda a, b, i: a[i] @ b, indexed),
    Case("demand: (A@B)[rows]", lambda a, b, i: (a @ b)[i], lambda a, b, i: a[i] @ b, numbered),
    Case(
        "demand: take(A@B, rows)",
        lambda a, b, i: jnp.take(a @ b, i, axis=0),
        lambda a, b, i: jnp.take(a, i, axis=0) @ b,
        numbered,
    ),
    Case("demand: last-token logits", lambda h, w: (h @ w)[:, -1], lambda h, w: h[:, -1] @ w, tokens),
    Case(
        "demand: last token of a normalised MLP",
        lambda x, *weights: mlp(x, *weights)[:, -1],
        lambda x, *weights: mlp(x[:, -1], *weights),
        network,
    ),
    Case(
        "demand: softmax of last-token logits",
        lambda h, w: jax.nn.softmax(h @ w)[:, -1],
        lambda h, w: jax.nn.softmax(h[:, -1] @ w),
        tokens,
    ),
    Case("demand: diagonal(A@B)", lambda a, b: jnp.diagonal(a @ b), lambda a, b: (a * b.T).sum(1), square),
    Case("demand: trace(A@B)", lambda a, b: jnp.trace(a @ b), lambda a, b: (a * b.T).sum(), square),
    Case(
        "demand: vmap of (A@B)[i]",
        jax.vmap(lambda a, b, i: (a @ b)[i]),
        jax.vmap(lambda a, b, i: a[i] @ b),
        lambda: (normal(16, 256, 256), normal(16, 256, 256, seed=1), integers(16, below=256, seed=2)),
    ),
    Case("demand: sum(A@B)", lambda a, b: jnp.sum(a @ b), lambda a, b: a.sum(0) @ b.sum(1), square),
    Case("demand: mean(A@B, 0)", lambda a, b: jnp.mean(a @ b, 0), lambda a, b: jnp.mean(a, 0) @ b, square),
    Case(
        "demand: mean over tokens of a projection",
        lambda x, w, b, v, c: jnp.mean(x @ w + b, 1),
        lambda x, w, b, v, c: jnp.mean(x, 1) @ w + b,
        network,
    ),
    Case(
        "demand: last output of a recurrent network",
        lambda x, w, v: outputs(x, w, v)[-1],
        last_output,
        recurrent,
    ),
    Case(
        "demand: one image convolved",
        lambda x, w: convolved(x, w)[0],
        lambda x, w: convolved(x[:1], w)[0],
        images,
    ),
    Case(
        "demand: 8 features convolved",
        lambda x, w: convolved(x, w)[..., :8],
        lambda x, w: convolved(x, w[..., :8]),
        images,
    ),
    Case("demand: 4 rows convolved", lambda x, w: convolved(x, w)[:, :4], top_rows, images),
    Case("demand: mean of a convolution", lambda x, w: convolved(x, w).mean((1, 2)), pooled, images),
    Case(
        "demand: sum of the features convolved",
        lambda x, w: convolved(x, w).sum(-1),
        lambda x, w: convolved(x, w.sum(-1, keepdims=True))[..., 0],
        images,
    ),
    Case(
        "demand: take_along_axis(h@W, classes)",
        lambda h, w, i: jnp.take_along_axis(h @ w, i[:, None], 1)[:, 0],
        lambda h, w, i: jnp.sum(h * w[:, i].T, 1),
        chosen,
    ),
    Case(
        "demand: (h@W)[arange, classes]",
        lambda h, w, i: (h @ w)[jnp.arange(512), i],
        lambda h, w, i: jnp.sum(h * w[:, i].T, 1),
        chosen,
    ),
    Case(
        "demand: logits of the last token of each",
        lambda h, w, i: (h @ w)[jnp.arange(4), i],
        lambda h, w, i: h[jnp.arange(4), i] @ w,
        lambda: (*tokens(), integers(4, below=128, seed=2)),
    ),
    Case(
        "demand: softmax of tokens of each (take_along_axis)",
        lambda h, w, i: jax.nn.softmax(jnp.take_along_axis(h @ w, i[..., None], 1)),
        lambda h, w, i: jax.nn.softmax(jnp.take_along_axis(h, i[..., None], 1) @ w),
        lambda: (*tokens(), integers(4, 8, below=128, seed=2)),
    ),
    Case(
        "demand: one head of a projection",
        lambda h, w: (h @ w).reshape(4, 128, 64, 128)[:, :, 3],
        lambda h, w: h @ w[:, 3 * 128 : 4 * 128],
        tokens,
    ),
    Case(
        "demand: average(A@B, weights)",
        lambda a, b, w: jnp.average(a @ b, axis=0, weights=w),
        lambda a, b, w: (w @ a) @ b / w.sum(),
        lambda: (*square(), jnp.abs(normal(1024, seed=2))),
    ),
    Case("demand: sum(2 * (A@B))", lambda a, b: (2 * (a @ b)).sum(0), lambda a, b: 2 * a.sum(0) @ b, square),
    Case(
        "demand: mean of a convolution with bias",
        lambda x, w, b: (convolved(x, w) + b).mean((1, 2)),
        lambda x, w, b: pooled(x, w) + b,
        lambda: (*images(), normal(64, seed=2)),
    ),
    Case(
        "demand: last step of a scan, batch first",
        lambda x, w, v: jnp.swapaxes(outputs(x, w, v), 0, 1)[:, -1],
        last_output,
        recurrent,
    ),
    Case(
        "demand: two parts of A@B (left alone)",
        lambda a, b: jnp.stack([(a @ b)[:512], jnp.tanh((a @ b)[512:])]),
        lambda a, b: jnp.stack([(a @ b)[:512], jnp.tanh((a @ b)[512:])]),
        square,
    ),
    Case(
        "demand: tanh(exp(X))[rows] (XLA does it)",
        lambda x, y, i: jnp.tanh(jnp.exp(x))[i],
        lambda x, y, i: jnp.tanh(jnp.exp(x[i])),
        numbered,
    ),
]
