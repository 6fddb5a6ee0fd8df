"""Chains of matrix products."""

from __future__ import annotations

from typing import Any, Final

import jax.numpy as jnp
from jax import lax

from tests.properties._draw import SIMPLIFIED, Draw, Makers, P, Program

PASS: Final = "chains"

_NEAR: Final = "products in another order may overflow near the limit of float32, as documented"


def _common(d: Draw) -> Program:
    m, k, n = (d.size(1) for _ in range(3))
    a, b = d.wide((m, k)), d.wide((k, n))
    number = d.pick(1.0, 2.0, -0.5)
    if d.pick(True, False):
        return P(
            lambda a, b, c: d.pick(jnp.add, jnp.subtract)(number * (a @ b), a @ c), a, b, b, overflows=_NEAR
        )
    return P(lambda a, c, b: d.pick(jnp.add, jnp.subtract)(a @ b, c @ b), a, a, b, overflows=_NEAR)


def _chain(d: Draw) -> Program:
    """(A @ B) @ v with few columns, perhaps with factors in it and transposed."""
    m, k, n = d.whole(90, 130), d.whole(90, 130), d.whole(90, 130)
    dtype = d.pick("float32", "float64" if d.x64 else "float32")
    args = d.like((m, k), dtype), d.like((k, n), dtype), d.like((n, d.whole(1, 2)), dtype)
    forms = (
        lambda a, b, v: (a @ b) @ v,
        lambda a, b, v: ((a @ b) * 0.5) @ v,
        lambda a, b, v: (v.T @ (a @ b).T).T,
        lambda a, b, v: (-(a @ b)) @ v,
    )
    return P(d.pick(*forms), *args, overflows=_NEAR)


def _shared(d: Draw) -> Program:
    m = d.whole(200, 260)
    square = d.wide((m, m))

    def fun(a: Any, b: Any, v: Any, w: Any) -> Any:
        product = a @ b
        return product @ v, product.T @ w

    return P(fun, square, square, d.wide((m,)), d.wide((m,)), overflows=_NEAR, prepare=SIMPLIFIED)


def _once_each_way(d: Draw, batch: int, second: int) -> Program:
    """A matrix times a vector, and the vector times dimension `second` of the matrix."""
    n = d.size(1)
    lead = tuple(range(batch))
    shape = (2,) * batch

    def fun(a: Any, v: Any) -> Any:
        along = lax.dot_general(a, v, (((batch + 1,), (batch,)), (lead, lead)))
        return along, lax.dot_general(v, a, (((batch,), (batch + second,)), (lead, lead)))

    return P(fun, d.wide((*shape, n, n)), d.wide((*shape, n)))


MAKERS: Final[Makers] = {
    "common-matrix": (_common, _common),
    "order-of-products": (_chain, _chain),
    "order-of-shared-products": (_shared,),
    "product-turned-round": (lambda d: _once_each_way(d, d.whole(0, 1), 1),),
}

ALIKE: Final[Makers] = {
    "common-matrix": (
        lambda d: (lambda s: P(lambda a, b, c, e: a @ b + c @ e, s, s, s, s))(d.wide((3, 3))),
        lambda d: (lambda s: P(lambda a, b, c: a @ b + c @ a, s, s, s))(d.wide((3, 3))),
        lambda d: (lambda s: P(lambda a, b, c: a @ b + a @ c, s, s, s))(d.floats((3, 3), "float16")),
    ),
    "order-of-products": (
        lambda d: (lambda s: P(lambda a, b, v: a @ (b @ v), s, s, d.wide((16, 1))))(d.wide((16, 16))),
        lambda d: (lambda s: P(lambda a, b, v: jnp.tanh(a @ b) @ v, s, s, d.wide((16, 1))))(d.wide((16, 16))),
    ),
    "order-of-shared-products": (
        lambda d: (lambda s: P(lambda a, b, v: (lambda y: (y @ v, y))(a @ b), s, s, d.wide((16,))))(
            d.wide((16, 16))
        ),
    ),
    "product-turned-round": (lambda d: _once_each_way(d, 0, 0),),
}
