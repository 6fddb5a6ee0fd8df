"""Small products together, and products with what is the same for several batches."""

from __future__ import annotations

from typing import Any, Final

import jax.numpy as jnp

from tests.properties._draw import SIMPLIFIED, Draw, Makers, P, Program

PASS: Final = "batching"


def _program(fun: Any, *args: Any) -> Program:
    return P(fun, *args, prepare=SIMPLIFIED)


def _stacked(d: Draw) -> Program:
    count = d.whole(4, 6)
    x, w = d.wide((count, d.whole(4, 6), 16)), d.wide((count, 16, 16))
    axis = d.whole(0, 1)
    forms = (
        lambda x, w: jnp.stack([x[i] @ w[i] for i in range(count)], axis),
        lambda x, w: jnp.concatenate([jnp.tanh(x[i] @ w[i]) * 2.0 for i in range(count)], axis),
    )
    return _program(d.pick(*forms), x, w)


def _flat(d: Draw) -> Program:
    rows = d.whole(2, 8)
    x, w = d.wide((16, rows, 32)), d.wide((32, 256))
    return _program(lambda x, w: x @ jnp.broadcast_to(w, (16, *w.shape)), x, w)


def _grouped(d: Draw) -> Program:
    b, heads, times = 2, d.whole(2, 3), d.whole(2, 3)
    q, k = d.wide((b, heads * times, 32, 32)), d.wide((b, heads, 32, 32))
    return _program(lambda q, k: jnp.einsum("bhqd,bhkd->bhqk", q, jnp.repeat(k, times, 1)), q, k)


def _sliced(d: Draw) -> Program:
    rows, k, a, b = d.size(1), d.whole(2, 5), d.whole(1, 4), d.whole(1, 4)
    x, w = d.wide((rows, k)), d.wide((k, a + b + 1))
    forms = (
        lambda x, w: [x @ w[:, :a], x @ w[:, a:]],
        lambda x, w: [x @ w[:, a : a + b], jnp.tanh(x @ w[:, :a])],
        lambda x, w: [w[:, a:].T @ x.T, w[:, :a].T @ x.T],
        lambda x, w: [y * 2.0 for y in (x @ part for part in jnp.split(w, [1, a + 1], axis=1))],
    )
    return _program(d.pick(*forms), x, w)


def _indexed(d: Draw) -> Program:
    x, w = d.wide((d.size(1), 4)), d.wide((3, 4, d.size(1)))
    forms = (
        lambda x, w: [x @ w[0], x @ w[1], x @ w[2]],
        lambda x, w: [x @ w[i] for i in (2, 1)],
        lambda x, w: [jnp.einsum("rk,nk->rn", x, v) for v in (w[0].T, w[1].T)],
        lambda x, w: [x @ jnp.moveaxis(w, 0, 2)[:, :, i] for i in range(3)],
    )
    return _program(d.pick(*forms), x, w)


LEVELS: Final[Any] = {"sliced-products": "reassociate"}

MAKERS: Final[Makers] = {
    "sliced-products": (_sliced, _indexed),
    "stacked-products": (_stacked,),
    "flat-product": (_flat,),
    "grouped-product": (_grouped,),
}

ALIKE: Final[Makers] = {
    "sliced-products": (
        lambda d: _program(lambda x, w: [x @ w[:, :4], x @ w[:, 3:]], d.wide((3, 5)), d.wide((5, 7))),
        lambda d: _program(lambda x, w: [x[:, :2] @ w[:2], x[:, 2:] @ w[2:]], d.wide((3, 5)), d.wide((5, 7))),
        lambda d: _program(lambda x, w: [x @ w[:, ::2], x @ w[:, 1::2]], d.wide((3, 5)), d.wide((5, 6))),
    ),
    "stacked-products": (
        lambda d: _program(
            lambda x, w: jnp.stack([x[i] @ w[i] for i in (0, 2, 1, 3)]),
            d.wide((4, 4, 16)),
            d.wide((4, 16, 16)),
        ),
        lambda d: _program(
            lambda x, w: jnp.stack([(x[i] @ w[i]) * (i + 2.5) for i in range(4)]),
            d.wide((4, 4, 16)),
            d.wide((4, 16, 16)),
        ),
    ),
    "flat-product": (
        lambda d: _program(lambda x, w: x @ jnp.repeat(w, 8, 0), d.wide((16, 4, 32)), d.wide((2, 32, 256))),
    ),
    "grouped-product": (
        lambda d: _program(
            lambda q, k: jnp.einsum("bhqd,bhkd->bhqk", q, jnp.repeat(k, 2, 2)),
            d.wide((2, 4, 32, 32)),
            d.wide((2, 4, 16, 32)),
        ),
    ),
}
