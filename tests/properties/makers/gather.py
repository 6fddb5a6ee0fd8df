"""One-hot arrays, masks and classes."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from tests.properties._draw import SIMPLIFIED, Draw, Makers, P, Program

PASS: Final = "gather"

_ZEROS: Final = "what zeros would have made of infinities and NaN does not happen, as documented"


def _index(d: Draw, *shape: int, count: int = 5) -> jax.Array:
    return jnp.asarray(d.places(shape, count, outside=True))


def _program(fun: Any, *args: Any) -> Program:
    return P(fun, *args, prepare=SIMPLIFIED, drops=_ZEROS, overflows="sums in another order")


def _hot(i: Any, x: Any, count: int = 5) -> Any:
    return jax.nn.one_hot(i, count, dtype=x.dtype)


def _taken(d: Draw) -> Program:
    n, width, b = d.size(1), d.size(1), d.size(1, 3)
    dtype = d.pick("float32", "float32", "bfloat16")
    forms = (
        (lambda i, t: _hot(i, t) @ t, _index(d, n), d.like((5, width), dtype)),
        (lambda i, t: t @ _hot(i, t).T, _index(d, n), d.like((width, 5), dtype)),
        (
            lambda i, t: jnp.einsum("bsv,bvd->bsd", _hot(i, t), t),
            _index(d, b, n),
            d.like((b, 5, width), dtype),
        ),
        (lambda i, t: jnp.einsum("nv,nv->n", _hot(i, t), t), _index(d, n), d.like((n, 5), dtype)),
    )
    return _program(*d.pick(*forms))


def _added(d: Draw) -> Program:
    n, width, b = d.size(1), d.size(1), d.size(1, 3)
    forms = (
        (lambda i, y: _hot(i, y).T @ y, _index(d, n), d.wide((n, width))),
        (lambda i, y: y @ _hot(i, y), _index(d, n), d.wide((n,))),
        (lambda i, y: jnp.einsum("bsv,bsd->bvd", _hot(i, y), y), _index(d, b, n), d.wide((b, n, width))),
    )
    return _program(*d.pick(*forms))


def _picked(d: Draw) -> Program:
    n = d.size(1)
    forms = (
        lambda i, x: jnp.sum(_hot(i, x) * x, -1),
        lambda i, x: -jnp.sum(_hot(i, x) * x),
        lambda i, x: jnp.sum(jnp.where(i[:, None] == np.arange(5), x, 0), -1),
        lambda i, x: jnp.sum(_hot(i, x) * (x - jnp.max(x, -1, keepdims=True)), -1),
    )
    return _program(d.pick(*forms), _index(d, n), d.wide((n, 5)))


def _by_class(d: Draw) -> Program:
    n, width = d.size(2), d.size(1)
    if d.pick(True, False):
        return _program(
            lambda i, x: jnp.sum(jnp.where(i[:, None] == np.arange(5), x[:, None], 0), 0),
            _index(d, n),
            d.wide((n,)),
        )
    return _program(
        lambda i, x: jnp.sum(_hot(i, x)[:, :, None] * x[:, None, :], 0), _index(d, n), d.wide((n, width))
    )


def _stacked(d: Draw) -> Program:
    n, first = d.size(2), d.whole(0, 1)
    return _program(
        lambda i, x: jnp.stack([jnp.sum(jnp.where(i == k, x, 0)) for k in range(first, first + 4)]),
        _index(d, n),
        d.wide((n,)),
    )


def _means(i: Any, x: Any) -> Any:
    return jnp.stack(
        [jnp.sum(jnp.where(i == k, x, 0)) / jnp.sum(jnp.where(i == k, jnp.ones_like(x), 0)) for k in range(8)]
    )


def _masked(d: Draw) -> Program:
    m, k, n = d.size(2), d.size(2), d.size(2)
    return P(
        lambda p, x: jnp.sum(jnp.where(p[:, :, None], x[None], 0), 1),
        d.bools((m, k)),
        d.wide((k, n)),
        prepare=SIMPLIFIED,
    )


MAKERS: Final[Makers] = {
    "product-with-one-hot": (_taken, _taken),
    "product-with-one-hot-transposed": (_added, _added),
    "sum-with-one-hot": (_picked, _picked),
    "sum-by-class": (_by_class,),
    "stack-of-masked-sums": (_stacked,),
    "stack-of-arithmetic": (lambda d: P(_means, _index(d, 6), d.wide((6,)), prepare=SIMPLIFIED),),
    "stack-of-units": (
        lambda d: _program(
            lambda i, x: jnp.array([jnp.sum(jnp.where(i == k, x, 0)) for k in range(4)]),
            _index(d, 6),
            d.wide((6,)),
        ),
    ),
    "sum-by-masks": (_masked,),
}

ALIKE: Final[Makers] = {
    "product-with-one-hot": (
        lambda d: _program(lambda i, t: (_hot(i, t) * 0.9 + 0.1) @ t, _index(d, 3), d.wide((5, 2))),
    ),
    "product-with-one-hot-transposed": (
        lambda d: _program(
            lambda i, y: (i[:, None] <= np.arange(5)).astype(y.dtype).T @ y, _index(d, 3), d.wide((3, 2))
        ),
    ),
    "sum-with-one-hot": (
        lambda d: _program(lambda i, x: jnp.max(_hot(i, x) * x, -1), _index(d, 3), d.wide((3, 5))),
        lambda d: _program(
            lambda i, x: jnp.sum(jnp.where(i[:, None] == np.arange(5), x, 1.0), -1),
            _index(d, 3),
            d.wide((3, 5)),
        ),
    ),
    "sum-by-class": (
        lambda d: _program(
            lambda i, x: jnp.sum((i[:, None] >= np.arange(5)) * x[:, None], 0), _index(d, 3), d.wide((3,))
        ),
    ),
    "stack-of-masked-sums": (
        lambda d: _program(
            lambda i, x: jnp.stack([jnp.sum(jnp.where(i == k, x, 0)) for k in (0, 1, 3)]),
            _index(d, 3),
            d.wide((3,)),
        ),
    ),
    "stack-of-arithmetic": (
        lambda d: _program(
            lambda i, x: jnp.stack([jnp.max(jnp.where(i == k, x, 0)) / 2.0 for k in range(8)]),
            _index(d, 3),
            d.wide((3,)),
        ),
    ),
    "stack-of-units": (
        lambda d: _program(
            lambda i, x: jnp.array([jnp.max(jnp.where(i == k, x, 0)) for k in range(8)]),
            _index(d, 3),
            d.wide((3,)),
        ),
    ),
    "sum-by-masks": (
        lambda d: _program(
            lambda p, x: jnp.sum(jnp.where(p[:, :, None], x[None], 1.0), 1), d.bools((3, 3)), d.wide((3, 3))
        ),
    ),
}
