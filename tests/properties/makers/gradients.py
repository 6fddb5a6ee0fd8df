"""Arrays padded with zeros, as differentiation leaves them."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.properties._draw import TAME, Draw, Makers, P, Program, on

PASS: Final = "gradients"

_NO_EXTREMES: Final = (*TAME, "special", "zeros")
"""Where factors are multiplied in another order: products of extremes overflow and underflow there."""


def _widths(d: Draw, rank: int) -> list[tuple[int, int, int]]:
    return [(d.whole(0, 2), d.whole(1, 3), 0) for _ in range(rank)]


def _padded(d: Draw, x: Any, widths: Any = None) -> Any:
    return lax.pad(x, np.zeros((), x.dtype), _widths(d, x.ndim) if widths is None else widths)


def _matrix(d: Draw) -> Any:
    return d.floats((d.size(1), d.size(1)))


def _slices(d: Draw) -> Program:
    """The gradient of what reads several parts of one array."""
    count = 4
    x = d.floats((4 * d.whole(1, 2), d.size(1)))
    step = x.shape[0] // count

    def total(x: Any) -> Any:
        parts = [jnp.sin(x[i * step : (i + 1) * step]) * (i + 1) for i in range(count)]
        return sum((jnp.sum(p) for p in parts), jnp.zeros((), x.dtype))

    return P(jax.grad(total), x)


def _summed_pads(d: Draw, x: Any) -> Any:
    """Blocks side by side, with gaps or without, and something else."""
    gap = d.whole(0, 1)
    n = x.shape[0]
    length = 5 * (n + gap)
    total = None
    for i in range(5):
        low = i * (n + gap)
        block = lax.pad(
            x * (i + 1), np.zeros((), x.dtype), [(low, length - low - n, 0), *[(0, 0, 0)] * (x.ndim - 1)]
        )
        total = block if total is None else total + block
    return total


def _times_pad(d: Draw) -> Program:
    x = d.floats((d.size(1), d.size(1)))
    low, high = d.whole(0, 2), d.whole(1, 2)
    n: Any = d.like((x.shape[0] + low + high, x.shape[1]), "int32")
    op = d.pick(jnp.multiply, jnp.divide)

    def fun(x: Any, n: Any) -> Any:
        y, p = jnp.exp(jnp.tanh(n.astype(x.dtype))), _padded(d, x, [(low, high, 0), (0, 0, 0)])
        return op(p, y) if d.pick(True, False) else p * y

    return P(fun, x, n)


def _dot_pad(d: Draw) -> Program:
    m, k, n = d.size(1), d.size(1), d.size(1)
    low, high, inner = d.whole(0, 2), d.whole(1, 2), d.pick(True, False)
    x = d.wide((m, k))
    other: Any = d.like((k + low + high if inner else k, n), "int32")
    widths = [(0, 0, 0), (low, high, 0)] if inner else [(low, high, 0), (0, 0, 0)]
    return P(lambda x, w: _padded(d, x, widths) @ jnp.tanh(w.astype(x.dtype)), x, other)


def _mapped(d: Draw, p: Any) -> Any:
    return d.pick(
        jnp.negative,
        lambda y: lax.transpose(y, (1, 0)),
        lambda y: y.astype(d.pick("float32", "bfloat16") if y.dtype != "float32" else "bfloat16"),
    )(p)


def _viewed(d: Draw, p: Any) -> Any:
    ways = (
        lambda: p[:, None],
        lambda: lax.broadcast_in_dim(p, (2, *p.shape), (1, 2)),
        lambda: lax.reshape(p, (p.shape[0], 1, p.shape[1], 1)),
    )
    return d.pick(*ways)()


def _chosen(d: Draw, x: Any, y: Any) -> Any:
    p = _padded(d, x)
    mask = np.asarray(d.rng.random(p.shape) < 0.5)
    return d.pick(lambda z: lax.select_n(mask, z, p), lambda z: lax.select_n(mask, p, z))(jnp.zeros_like(p))


def _like_pads(d: Draw, x: Any, y: Any) -> Any:
    widths = _widths(d, x.ndim)
    return d.pick(jnp.add, jnp.subtract)(_padded(d, x, widths), _padded(d, y, widths))


def _weighted(d: Draw) -> Program:
    """Two sums of one product, as the gradient of a norm has them, and a sum of what is there anyway."""
    m, n = d.size(2), d.size(2)
    x, y = d.wide((m, n)), d.wide((m, n))
    w, r = d.wide((n,)), d.wide((m, 1))

    def fun(x: Any, y: Any, w: Any, r: Any) -> Any:
        return jnp.sum(x * (w * y), 1), jnp.sum(y * r * x, 0), jnp.sum(-x * w * r, 1)

    return P(fun, x, y, w, r, flavours=_NO_EXTREMES)


def _of_a_norm(d: Draw) -> Program:
    """What the gradient of a layer norm hands on to the mean."""
    m, n = d.size(2), d.size(2)
    g, x, w, k = d.wide((m, n)), d.wide((m, n)), d.wide((n,)), d.wide((m, 1))

    def fun(g: Any, x: Any, w: Any, k: Any) -> Any:
        centred = x - jnp.mean(x, 1, keepdims=True)
        return jnp.sum(d.pick(jnp.add, jnp.subtract)(g * w * k, centred * k), 1)

    return P(fun, g, x, w, k, flavours=_NO_EXTREMES, along=8.0, grad=False)


def _times_centred(x: Any, k: Any) -> Any:
    return jnp.sum((x - jnp.mean(x, 0)) * k, 0)


def _centred(d: Draw) -> Program:
    x, k = d.wide((d.size(2), d.size(2))), d.wide(())
    return P(_times_centred, x, k, flavours=_NO_EXTREMES, along=8.0, grad=False)


MAKERS: Final[Makers] = {
    "sum-of-pads": (_slices, on(lambda d: d.floats((d.size(1, 3),)), _summed_pads)),
    "dot-of-pad": (_dot_pad,),
    "product-with-pad": (_times_pad,),
    "map-of-pad": (on(_matrix, lambda d, x: _mapped(d, _padded(d, x))),),
    "sum-of-pad": (on(_matrix, lambda d, x: lax.reduce_sum(_padded(d, x), d.pick((0,), (1,), (0, 1)))),),
    "choice-of-pad": (on(_matrix, _chosen, 2),),
    "sum-of-like-pads": (on(_matrix, _like_pads, 2),),
    "view-of-pad": (on(_matrix, lambda d, x: _viewed(d, _padded(d, x))),),
    "sum-of-weighted": (_weighted,),
    "sum-of-terms": (_of_a_norm,),
    "sum-of-centred": (_centred,),
}

ALIKE: Final[Makers] = {
    "sum-of-pads": (
        on(
            lambda d: d.floats((2,)),
            lambda d, x: sum(_padded(d, x * (i + 1), [(i, 6 - i, 0)]) for i in range(6)),
        ),
    ),
    "dot-of-pad": (
        on(lambda d: d.wide((3, 3)), lambda d, x, w: _padded(d, x, [(1, 1, 0), (0, 0, 0)]) @ w, 2),
    ),
    "product-with-pad": (
        on(lambda d: d.wide((3,)), lambda d, x: _padded(d, x, [(1, 0, 0)]) * _padded(d, x, [(0, 1, 0)])),
    ),
    "map-of-pad": (
        on(lambda d: d.floats((2, 3)), lambda d, x: -lax.pad(x, np.ones((), x.dtype), [(1, 1, 0)] * 2)),
    ),
    "sum-of-pad": (
        on(
            lambda d: d.floats((2, 3)),
            lambda d, x: jnp.sum(lax.pad(x, np.ones((), x.dtype), [(1, 1, 0)] * 2), 0),
        ),
        on(lambda d: d.floats((2, 3)), lambda d, x: jnp.sum(_padded(d, x, [(1, 1, 1), (0, 0, 0)]), 0)),
    ),
    "choice-of-pad": (
        on(
            lambda d: d.floats((2,)),
            lambda d, x: jnp.where(np.array([True, False, True]), _padded(d, x, [(1, 0, 0)]), 1.0),
        ),
    ),
    "sum-of-like-pads": (
        on(
            lambda d: d.floats((2,)),
            lambda d, x, y: _padded(d, x, [(1, 0, 0)]) + _padded(d, y, [(0, 1, 0)]),
            2,
        ),
    ),
    "view-of-pad": (
        on(
            lambda d: d.floats((2, 3)), lambda d, x: lax.reshape(_padded(d, x, [(1, 0, 0), (1, 0, 0)]), (12,))
        ),
    ),
    "sum-of-weighted": (
        on(lambda d: d.wide((3, 4)), lambda d, x, y: (jnp.sum(x * y, 1), jnp.sum(x * y * x[:, :1], 0)), 2),
    ),
    "sum-of-terms": (
        on(lambda d: d.wide((3, 4)), lambda d, x, y: jnp.sum(x * y[0] + (x - jnp.mean(y, 1)[:, None]), 1), 2),
    ),
    "sum-of-centred": (
        on(lambda d: d.wide((3, 4)), lambda d, x: jnp.sum(x - jnp.max(x, 1, keepdims=True), 1)),
    ),
}
